"""Helpers under the names that users of Lightning know; what they do lives in the lower rooms."""
