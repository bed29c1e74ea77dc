"""Finetuning: freeze parts of a model before training, and unfreeze them in the course of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn import Parameter
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from fulmen.callback import Callback
from fulmen.errors import MisconfigurationException
from fulmen.ranks import rank_zero_info, rank_zero_warn

if TYPE_CHECKING:
    from fulmen.module import LightningModule
    from fulmen.trainer import Trainer

__all__ = ["BackboneFinetuning", "BaseFinetuning", "multiplicative"]

#: A module, or any nesting of iterables of modules.
Modules = nn.Module | Iterable[Any]


def multiplicative(epoch: int) -> float:
    """Twice the learning rate in each epoch."""
    return 2.0


class BaseFinetuning(Callback):
    """Base class of callbacks that freeze and unfreeze parts of a model.

    Override ``freeze_before_training`` and ``finetune_function``, and use the static methods of this class in them.
    ``configure_optimizers`` should give the optimizer only what is not frozen:
    ``filter(lambda p: p.requires_grad, self.parameters())``; the rest is added to it when it is unfrozen.

    A resumed run has the parameter groups, and the frozen parameters, that it had when the checkpoint was saved.

    Raises:
        NotImplementedError: One of the two methods is not overridden; or the strategy is DeepSpeed's, whose optimizers
            take no further parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self._groups: dict[int, list[dict[str, Any]]] = {}
        self._frozen: list[str] | None = None
        self._restarting = False

    # ------------------------------------------------------------------------------------------------ to be overridden

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freezes what is not to be trained in the beginning; called before the optimizers are made.

        Args:
            pl_module: The module.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` needs `freeze_before_training`, for instance\n"
            "    def freeze_before_training(self, pl_module): self.freeze(pl_module.backbone)"
        )

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreezes what is to be trained from ``epoch`` on; called for each optimizer when a training epoch begins.

        Args:
            pl_module: The module.
            epoch: The epoch that begins, counted from 0.
            optimizer: An optimizer.
        """
        raise NotImplementedError(
            f"`{type(self).__name__}` needs `finetune_function`, for instance\n"
            "    def finetune_function(self, pl_module, epoch, optimizer):\n"
            "        if epoch == 10: self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)"
        )

    # ------------------------------------------------------------------------------------------------ the tools

    @staticmethod
    def flatten_modules(modules: Modules) -> list[nn.Module]:
        """The parts of modules that have parameters of their own, or no parts.

        Args:
            modules: A module, or any nesting of iterables of modules.

        Raises:
            TypeError: ``modules`` holds something else.
        """
        if isinstance(modules, nn.Module):
            return [part for part in modules.modules() if part._parameters or not part._modules]
        if isinstance(modules, (str, Mapping)) or not isinstance(modules, Iterable):
            raise TypeError(f"Expected a module, or several in a list, not {type(modules).__name__}: {modules!r}.")
        return [part for module in modules for part in BaseFinetuning.flatten_modules(module)]

    @staticmethod
    def filter_params(modules: Modules, train_bn: bool = True, requires_grad: bool = True) -> Iterator[Parameter]:
        """The parameters of modules.

        Args:
            modules: A module, or any nesting of iterables of modules.
            train_bn: Whether those of batch norms are among them.
            requires_grad: Whether those that are trained are given, or those that are frozen.
        """
        for part in BaseFinetuning.flatten_modules(modules):
            if isinstance(part, _BatchNorm) and not train_bn:
                continue
            for parameter in part.parameters(recurse=False):
                if parameter.requires_grad == requires_grad:
                    yield parameter

    @staticmethod
    def make_trainable(modules: Modules) -> None:
        """Unfreezes modules: parameters get gradients, batch norms follow the statistics of the batches.

        Args:
            modules: A module, or any nesting of iterables of modules.
        """
        for part in BaseFinetuning.flatten_modules(modules):
            _set_trainable(part, True)

    @staticmethod
    def freeze_module(module: nn.Module) -> None:
        """Freezes a module's own parameters, not those of its parts; a batch norm also stops to follow statistics.

        Args:
            module: The module.
        """
        _set_trainable(module, False)

    @staticmethod
    def freeze(modules: Modules, train_bn: bool = True) -> None:
        """Freezes modules.

        Args:
            modules: A module, or any nesting of iterables of modules.
            train_bn: Whether batch norms are still trained.
        """
        for part in BaseFinetuning.flatten_modules(modules):
            _set_trainable(part, train_bn and isinstance(part, _BatchNorm))

    @staticmethod
    def filter_on_optimizer(optimizer: Optimizer, params: Iterable[Parameter]) -> list[Parameter]:
        """The parameters that the optimizer does not have yet.

        Args:
            optimizer: The optimizer.
            params: The parameters.

        Warns:
            UserWarning: It has some of them.
        """
        there, given = _ids_in(optimizer), list(params)
        new = [parameter for parameter in given if id(parameter) not in there]
        if len(new) < len(given):
            rank_zero_warn(
                f"{len(given) - len(new)} of the parameters to be added to {type(optimizer).__name__} are in one of its"
                " groups already, and stay there with its learning rate. Give it in `configure_optimizers` only what"
                " is not frozen: `filter(lambda p: p.requires_grad, self.parameters())`."
            )
        return new

    @staticmethod
    def unfreeze_and_add_param_group(
        modules: Modules,
        optimizer: Optimizer,
        lr: float | None = None,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
    ) -> None:
        """Unfreezes modules, and adds their parameters to the optimizer as a group of their own.

        Args:
            modules: A module, or any nesting of iterables of modules.
            optimizer: The optimizer.
            lr: Learning rate of the group. None: that of the first group, divided by ``initial_denom_lr``.
            initial_denom_lr: See ``lr``.
            train_bn: Whether the parameters of batch norms are added as well.
        """
        # what has been trained all along is in the optimizer by right: a batch norm, for instance
        trained = _ids(BaseFinetuning.filter_params(modules)) & _ids_in(optimizer)
        BaseFinetuning.make_trainable(modules)
        if lr is None:
            lr = optimizer.param_groups[0]["lr"] / initial_denom_lr
        parameters = BaseFinetuning.filter_params(modules, train_bn=train_bn)
        new = BaseFinetuning.filter_on_optimizer(optimizer, [p for p in parameters if id(p) not in trained])
        if new:
            optimizer.add_param_group({"params": new, "lr": lr})

    # ------------------------------------------------------------------------------------------------ the run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Freezes what is not to be trained in the beginning, if this is a fit."""
        self._restarting = False
        if stage != "fit":
            return
        if any(part.__name__ == "DeepSpeedStrategy" for part in type(trainer.strategy).__mro__):
            raise NotImplementedError(
                f"`{type(self).__name__}` adds parameters to the optimizers, which DeepSpeed does not allow. Use"
                " another strategy, or leave the callback out."
            )
        self.freeze_before_training(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Goes on where training was left: in a run that is resumed, or in a further fit of the same trainer."""
        if self._restarting or trainer.current_epoch > 0:
            self._restore(trainer.optimizers, pl_module)
        else:
            self._groups, self._frozen = {}, None
        self._restarting = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Has the optimizers prepared for the epoch, and remembers how they are then."""
        names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        for place, optimizer in enumerate(trainer.optimizers):
            self.finetune_function(pl_module, trainer.current_epoch, optimizer)
            known = self._groups.setdefault(place, [])
            known += [_describe(group, names) for group in optimizer.param_groups[len(known) :]]
        self._frozen = _frozen_names(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The parameter groups of each optimizer, with names for parameters, and the names of what is frozen."""
        return {"internal_optimizer_metadata": self._groups, "frozen": self._frozen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave; files of Lightning do not say what is frozen."""
        self._restarting = True
        self._groups = state_dict["internal_optimizer_metadata"]
        self._frozen = state_dict.get("frozen")

    def _restore(self, optimizers: list[Optimizer], module: LightningModule) -> None:
        parameters = dict(module.named_parameters())
        for place, groups in self._groups.items():
            optimizers[place].param_groups = [
                {**deepcopy(group), "params": [parameters[name] for name in group["params"]]} for group in groups
            ]
        if self._frozen is None:
            return
        for name, parameter in parameters.items():
            parameter.requires_grad = name not in self._frozen
        for name, part in module.named_modules():
            if isinstance(part, _BatchNorm):
                part.track_running_stats = name not in self._frozen


class BackboneFinetuning(BaseFinetuning):
    """Trains a model without its ``backbone`` first, and then with it, at a learning rate of its own that grows.

    The batch norms of the backbone are trained from the beginning.

    Args:
        unfreeze_backbone_at_epoch: The epoch, counted from 0, from which on the backbone is trained.
        lambda_func: By how much its learning rate is multiplied at the beginning of each further epoch, given the
            number of the next one.
        backbone_initial_ratio_lr: Its first learning rate, as a fraction of that of the optimizer's first group.
        backbone_initial_lr: Its first learning rate, instead of the fraction.
        should_align: Whether its learning rate is never more than that of the first group.
        initial_denom_lr: Not used, as the learning rate is always given; see ``unfreeze_and_add_param_group``.
        train_bn: Whether parameters of its batch norms which the optimizer does not have are added with the rest.
        verbose: Whether to report the learning rates of each epoch.
        rounding: Digits of these reports.

    Attributes:
        previous_backbone_lr: The learning rate of the backbone, None while it is frozen.

    Raises:
        MisconfigurationException: (when fit starts) the module has no ``backbone``.
    """

    def __init__(
        self,
        unfreeze_backbone_at_epoch: int = 10,
        lambda_func: Callable[[int], float] = multiplicative,
        backbone_initial_ratio_lr: float = 10e-2,
        backbone_initial_lr: float | None = None,
        should_align: bool = True,
        initial_denom_lr: float = 10.0,
        train_bn: bool = True,
        verbose: bool = False,
        rounding: int = 12,
    ) -> None:
        super().__init__()
        self.unfreeze_backbone_at_epoch = unfreeze_backbone_at_epoch
        self.lambda_func = lambda_func
        self.backbone_initial_ratio_lr = backbone_initial_ratio_lr
        self.backbone_initial_lr = backbone_initial_lr
        self.should_align = should_align
        self.initial_denom_lr = initial_denom_lr
        self.train_bn = train_bn
        self.verbose = verbose
        self.rounding = rounding
        self.previous_backbone_lr: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """That of ``BaseFinetuning``, and the learning rate of the backbone."""
        return {**super().state_dict(), "previous_backbone_lr": self.previous_backbone_lr}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        self.previous_backbone_lr = state_dict["previous_backbone_lr"]
        super().load_state_dict(state_dict)

    def freeze_before_training(self, pl_module: LightningModule) -> None:
        """Freezes the backbone, except for its batch norms."""
        self.freeze(_backbone_of(pl_module))

    def finetune_function(self, pl_module: LightningModule, epoch: int, optimizer: Optimizer) -> None:
        """Unfreezes the backbone when its epoch has come; raises its learning rate from then on."""
        if epoch < self.unfreeze_backbone_at_epoch:
            return
        backbone = _backbone_of(pl_module)
        current = float(optimizer.param_groups[0]["lr"])
        if epoch == self.unfreeze_backbone_at_epoch or self.previous_backbone_lr is None:
            given = self.backbone_initial_lr
            rate = current * self.backbone_initial_ratio_lr if given is None else given
            self.unfreeze_and_add_param_group(backbone, optimizer, rate, self.initial_denom_lr, self.train_bn)
        else:
            rate = self.lambda_func(epoch + 1) * self.previous_backbone_lr
            rate = min(rate, current) if self.should_align else rate
            # an optimizer that had everything from the beginning got no group for the backbone
            last = optimizer.param_groups[-1]
            if _ids(last["params"]) <= _ids(backbone.parameters()):
                last["lr"] = rate
        self.previous_backbone_lr = rate
        if self.verbose:
            rank_zero_info(f"Current lr: {round(current, self.rounding)}, Backbone lr: {round(rate, self.rounding)}")


def _backbone_of(module: LightningModule) -> nn.Module:
    backbone = getattr(module, "backbone", None)
    if isinstance(backbone, nn.Module):
        return backbone
    raise MisconfigurationException(
        "`BackboneFinetuning` trains the part of a model that is called `backbone` later than the rest;"
        f" `{type(module).__name__}` has no such module. Name it so (`self.backbone = ...` in `__init__`), or write a"
        " callback of your own on top of `BaseFinetuning`.",
        subject=module,
    )


def _set_trainable(part: nn.Module, trainable: bool) -> None:
    if isinstance(part, _BatchNorm):
        part.track_running_stats = trainable
    for parameter in part.parameters(recurse=False):
        parameter.requires_grad = trainable


def _describe(group: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
    """A parameter group in plain types."""
    settings = {key: deepcopy(value) for key, value in group.items() if key != "params"}
    return {**settings, "params": [names[id(parameter)] for parameter in group["params"] if id(parameter) in names]}


def _frozen_names(module: nn.Module) -> list[str]:
    """The parameters without gradients, and the batch norms that do not follow statistics."""
    parameters = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    norms = [
        name for name, part in module.named_modules() if isinstance(part, _BatchNorm) and not part.track_running_stats
    ]
    return parameters + norms


def _ids(parameters: Iterable[Parameter]) -> set[int]:
    return {id(parameter) for parameter in parameters}


def _ids_in(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
