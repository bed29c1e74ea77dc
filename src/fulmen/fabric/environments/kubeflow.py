"""Processes started by the training operator of Kubeflow."""

from __future__ import annotations

from fulmen.fabric.environments.cluster_environment import ExternalEnvironment
from fulmen.fabric.environments.variables import number_in, text_in

__all__ = ["KubeflowEnvironment"]

_OPERATOR = "a PyTorchJob of Kubeflow"


class KubeflowEnvironment(ExternalEnvironment):
    """The environment of a PyTorchJob: one process on each node; reads MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK.

    Nothing tells it from other environments, so that it has to be given: `plugins=[KubeflowEnvironment()]`.
    """

    @property
    def main_address(self) -> str:
        """MASTER_ADDR."""
        return text_in("MASTER_ADDR", _OPERATOR)

    @property
    def main_port(self) -> int:
        """MASTER_PORT."""
        return number_in("MASTER_PORT", _OPERATOR)

    @staticmethod
    def detect() -> bool:
        """Not possible.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "Nothing tells Kubeflow from other environments. Type: plugins=[KubeflowEnvironment()]"
        )

    def world_size(self) -> int:
        """WORLD_SIZE."""
        return number_in("WORLD_SIZE", _OPERATOR)

    def global_rank(self) -> int:
        """RANK."""
        return number_in("RANK", _OPERATOR)

    def local_rank(self) -> int:
        """Always 0: a node has one process."""
        return 0

    def node_rank(self) -> int:
        """RANK: a node has one process."""
        return self.global_rank()
