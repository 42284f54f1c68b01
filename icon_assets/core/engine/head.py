"""The NLL of tokens: vocabulary logits only at the places that predict them, some at a time, in float32."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


_HEAD_ROWS = 512  # scored places whose vocabulary logits exist at a time
_LOGIT_ROWS = 32  # of them in float32 at a time: few enough to stay in a CPU's cache


class Head:
    """A model in two parts, its layers and its head.

    Attributes:
        apart: whether the head runs by itself, on the scored places only. Not where a model does more after its layers
            than a product with the head.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model: Any = model
        self.apart = False

    @cached_property
    def _layers(self) -> Any:
        """The model without its head, or None where the model does not tell them apart."""
        inner = self._model.base_model
        head = self._model.get_output_embeddings()
        return inner if inner is not self._model and head is not None else None

    @property
    def can_be_apart(self) -> bool:
        return self._layers is not None

    def nll(
        self,
        inputs: dict[str, Any],
        rows: "torch.Tensor",
        columns: "torch.Tensor",
        targets: "torch.Tensor",
        *,
        apart: bool | None = None,
    ) -> "torch.Tensor":
        """Run the model on `inputs`; nothing here waits for the device.

        Args:
            rows, columns: the places [n] whose logits predict `targets` [n].
            apart: None for the attribute.

        Returns:
            NLL in nats of each target, float64, on the model's device.
        """
        return self._run(inputs, rows, columns, targets, self.apart if apart is None else apart)[0]

    def nll_and_states(
        self, inputs: dict[str, Any], rows: "torch.Tensor", columns: "torch.Tensor", targets: "torch.Tensor"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """The same, and the last hidden states [rows of the batch, width, hidden]."""
        return self._run(inputs, rows, columns, targets, self.apart, output_hidden_states=True)

    def _run(
        self,
        inputs: dict[str, Any],
        rows: "torch.Tensor",
        columns: "torch.Tensor",
        targets: "torch.Tensor",
        apart: bool,
        **more: bool,
    ) -> "tuple[torch.Tensor, Any]":
        import torch

        with torch.inference_mode():
            if not apart:
                kept = columns.unique() if columns.numel() else columns.new_zeros(1)  # sorted
                output = self._model(**inputs, **more, logits_to_keep=kept)
                logits = output.logits[rows, torch.searchsorted(kept, columns)]
                return _nll(logits, targets).double(), output.hidden_states[-1] if more else None
            hidden = self._layers(**inputs).last_hidden_state
            head = self._model.get_output_embeddings()
            parts = zip(hidden[rows, columns].split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True)
            return torch.cat([_nll(head(states), wanted) for states, wanted in parts]).double(), hidden


def _nll(logits: "torch.Tensor", targets: "torch.Tensor") -> "torch.Tensor":
    """NLL in nats per row of `logits` [n, vocabulary], in float32, a few rows at a time."""
    import torch

    parts = []
    step = _LOGIT_ROWS if logits.device.type == "cpu" else _HEAD_ROWS
    for rows, wanted in zip(logits.split(step), targets.split(step), strict=True):
        parts.append(torch.nn.functional.cross_entropy(rows.float(), wanted, reduction="none"))
    return torch.cat(parts)
