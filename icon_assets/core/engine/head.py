"""The NLL of tokens: vocabulary logits only at the places that predict them, some at a time, in float32."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from icon_assets.core.model.logits import head_nll, token_nll

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


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
                return token_nll(logits, targets).double(), output.hidden_states[-1] if more else None
            hidden = self._layers(**inputs).last_hidden_state
            head = self._model.get_output_embeddings()
            return head_nll(head, hidden[rows, columns], targets).double(), hidden
