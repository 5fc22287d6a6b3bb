"""The bar of long work: on a terminal, and only there."""

import pytest

from nucleipan.progress import terminal_bar


def test_a_terminal_sees_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with terminal_bar("a [red]slide.svs") as update:
        assert update is not None
        update(3, 10, "segmenting")
    shown = capsys.readouterr()
    assert "a [red]slide.svs: segmenting" in shown.err  # a name is no markup
    assert "3/10" in shown.err
    assert shown.out == ""


def test_a_log_sees_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    with terminal_bar("a slide.svs") as update:
        assert update is None
    assert capsys.readouterr().err == ""
