"""The record of calls of the front end modules: shown as a record, in order, with the cuts."""

import torch
from nets import Twice
from torch import Tensor, nn

import dni_fx
from dni_fx.report.calls import record_lines

X = torch.rand(4, 6)


class Embedded(nn.Module):
    """Two calls take the inputs of the model, as the embeddings of a GPT do: the record is no chain."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe, self.body, self.head = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.wte(x) + self.wpe(x))))


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, _) = self.lstm(x)
        return self.head(y + h[0].unsqueeze(1))


def test_the_diff_is_a_record() -> None:
    model = Embedded()
    net = dni_fx.transform(model, X, frontend="modules", cuts=["body"])
    text = dni_fx.diff(model, net).to_text()
    lines = [line for line in text.splitlines() if not line.startswith("=")]
    calls = [line.split()[1] for line in lines if line.startswith("  call ")]
    assert calls == ["wte", "wpe", "body", "head"]
    assert "no code" in lines[0] and "def forward" not in text and "(wte" not in text and " = " not in text
    order = ["= segment 0", "call body (Linear)", "= cut 0", "+ cut body off, an output of body (4x6 float32)"]
    order += ["net.dni.cut0_body", "= segment 1", "call head"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_calls_of_one_module_and_several_outputs() -> None:
    net = dni_fx.transform(Twice(), X, frontend="modules", cuts=2)
    assert any("call 2 of the step" in line.text for line in record_lines(net))
    net = dni_fx.transform(Several(), torch.rand(4, 3, 6), frontend="modules", cuts=["lstm"], unlock="none")
    added = [line for line in record_lines(net) if line.added]
    assert [line.place for line in added] == ["cut 0"] * 3
    assert added[-1].text == "send the prediction upstream"


def test_a_cut_in_time_is_in_the_record() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRUCell(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = self.gru(x, h)
            return self.head(h), h

    net = dni_fx.transform(Recurrent(), (X, torch.zeros(4, 5)), frontend="modules", state=True)
    assert "= cut in time" in dni_fx.diff(net.dni_original, net).to_text()
    assert [line.place for line in record_lines(net)] == ["segment 0", "segment 0", "cut in time"]
