"""The widget that runs the model on what the user looks at.

Everything slow happens in a worker's thread, importing torch included; the window hears from it through signals.
Nuclei are shown while the run goes on, from the files of finished tiles, and at the end from the store.
"""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from napari.layers import Labels, Layer
from napari.qt.threading import create_worker
from napari.utils.colormaps import CyclicLabelColormap
from napari.utils.notifications import show_error
from qtpy.QtCore import QObject, Qt, QTimer, Signal
from qtpy.QtWidgets import QCheckBox, QLabel, QProgressBar, QPushButton, QSizePolicy, QVBoxLayout, QWidget

from napari_nucleipan._field import use_pixel_size
from napari_nucleipan._form import in_row
from napari_nucleipan._layers import STORE_KEY, placed, store_layers, watch
from napari_nucleipan._nuclei import outline
from napari_nucleipan._segment_form import SegmentForm
from napari_nucleipan._segmenting import Pace, Refused, Request, Stopped, can_be_replaced, in_window, segment
from nucleipan.errors import MissingPixelSizeError, NucleipanError

if TYPE_CHECKING:
    import napari

    from napari_nucleipan._live import LiveNuclei
    from nucleipan.segment import SegmentResult

LIVE_NAME = "nuclei so far"
_REFRESH_MS = 500


class Run(QObject):
    """What passes between the thread of a run and the window.

    A run ends early by either of two flags: ours, and the one that napari sets when the program ends.
    """

    progressed = Signal(int, int, str)
    began = Signal(object)

    def __init__(self, request: Request) -> None:
        super().__init__()
        self.request = request
        self.stop = Event()
        self.worker: Any = create_worker(segment, request, self)

    def progress(self, done: int, total: int, step: str) -> None:
        self.progressed.emit(done, total, step)

    def begun(self, live: LiveNuclei) -> None:
        self.began.emit(live)

    def is_stopped(self) -> bool:
        return self.stop.is_set() or bool(self.worker.abort_requested)


class SegmentWidget(QWidget):
    """Segment a slide of the viewer: what is visible, a drawn region, or all of it."""

    # napari knows by this very annotation that it has to pass its viewer.
    def __init__(self, viewer: napari.viewer.Viewer) -> None:
        super().__init__()
        self._viewer = viewer
        self._run: Run | None = None
        self._stopped: Request | None = None
        self._live: tuple[LiveNuclei, Layer] | None = None
        self._n_shown = 0
        self._pace = Pace()
        self.form = SegmentForm(viewer)
        self._make_outcome()
        self._lay_out()
        self._refresher = QTimer(self)
        self._refresher.setInterval(_REFRESH_MS)
        self._refresher.timeout.connect(self._show_new_tiles)
        self.form.changed.connect(self._forget_refusal)
        self._say("")
        self._set_running(False)

    @property
    def is_running(self) -> bool:
        return self._run is not None

    def _make_outcome(self) -> None:
        self.start_button = QPushButton("Segment")
        self.start_button.clicked.connect(self._start)
        self.resume_button = QPushButton("Resume")
        self.resume_button.setToolTip("Go on with the run that was stopped.")
        self.resume_button.clicked.connect(self._resume)
        self.cancel_button = QPushButton("Cancel")
        self.cancel_button.setToolTip("Stop after the tile that is under way; finished tiles are kept.")
        self.cancel_button.clicked.connect(self._cancel)
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.pace = QLabel()
        self.message = QLabel()
        self.message.setWordWrap(True)
        self.message.setTextFormat(Qt.TextFormat.PlainText)
        self.message.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.message.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
        self.overwrite = QCheckBox("Replace what is there")

    def _lay_out(self) -> None:
        layout = QVBoxLayout(self)
        layout.addWidget(self.form)
        layout.addWidget(in_row(self.start_button, self.resume_button, self.cancel_button))
        for widget in (self.bar, self.pace, self.message, self.overwrite):
            layout.addWidget(widget)
        layout.addStretch()

    def _set_running(self, is_running: bool) -> None:
        self.form.setEnabled(not is_running)
        self.start_button.setEnabled(not is_running)
        self.resume_button.setVisible(not is_running and self._stopped is not None)
        self.cancel_button.setVisible(is_running)
        self.cancel_button.setEnabled(is_running)
        self.bar.setVisible(is_running)
        self.pace.setVisible(is_running)

    def _say(self, text: str, can_replace: bool = False) -> None:
        # Paths have no spaces to break a line at.
        self.message.setText(text.replace("/", "/\u200b"))
        self.message.setToolTip(text)
        self.message.setVisible(bool(text))
        self.overwrite.setVisible(can_replace)
        self.overwrite.setChecked(False)

    def _forget_refusal(self) -> None:
        """Consent to replace a store is for that store only."""
        if not self.overwrite.isHidden():
            self._say("")

    # What the user does

    def _start(self) -> None:
        try:
            request = self.form.request(self.overwrite.isChecked())
        except NucleipanError as error:
            self._refuse(error)
        else:
            self._begin(request)

    def _resume(self) -> None:
        if self._stopped is not None:
            self._begin(self._stopped)

    def _cancel(self) -> None:
        if self._run is not None:
            self._run.stop.set()
            self.cancel_button.setEnabled(False)
            self._say("Stopping after the tile that is under way ...")

    # What the run does

    def _begin(self, request: Request) -> None:
        self._say("")
        self._stopped, self._pace = None, Pace()
        self._run = run = Run(request)
        run.progressed.connect(self._on_progress)
        run.began.connect(self._on_began)
        run.worker.returned.connect(self._on_returned)
        run.worker.errored.connect(self._on_broken)
        self.destroyed.connect(run.stop.set)
        self._set_running(True)
        self._refresher.start()
        run.worker.start()

    def _on_progress(self, done: int, total: int, step: str) -> None:
        is_counted = step == "segmenting"
        self.bar.setRange(0, total if is_counted else 0)
        self.bar.setValue(done)
        if is_counted:
            pace = self._pace.describe(done, total)
            self.pace.setText(", ".join([f"{done} of {total} tiles", *([pace] if pace else [])]))
        else:
            self.pace.setText(f"{step} ...")
        if step == "stitching":
            self.cancel_button.setEnabled(False)

    def _on_began(self, live: LiveNuclei) -> None:
        """Show the nuclei of the tiles that are finished, in the place of a store that is made anew."""
        if self._run is None:
            return
        from nucleipan.segment import store_path

        request = self._run.request
        self._close_store(store_path(request.slide, request.out).absolute())
        layer = self.form.layer_of(request.slide)
        if layer is not None:
            use_pixel_size(self._viewer, layer, live.mpp / live.context.level0_per_pixel)
            self._hide_live()
            self._live, self._n_shown = (live, _live_layer(live)), live.n_tiles
            self._viewer.add_layer(self._live[1])

    def _show_new_tiles(self) -> None:
        if self._live is not None and self._live[0].n_tiles != self._n_shown:
            live, layer = self._live
            self._n_shown = live.n_tiles
            live.update()
            layer.refresh(extent=False)

    def _on_returned(self, outcome: SegmentResult | Stopped | Refused) -> None:
        request = self._run.request if self._run else None
        self._end(request if isinstance(outcome, Stopped) else None)
        if isinstance(outcome, Refused):
            self._refuse(outcome.error)
        elif isinstance(outcome, Stopped):
            self._say(f"Stopped. {_kept(outcome)} Press Resume to go on, or Segment for something else.")
        elif request is not None:
            try:
                self._show_store(request, outcome)
            except NucleipanError as error:
                self._refuse(error)

    def _on_broken(self, error: Exception) -> None:
        """What nobody foresaw; napari shows the traceback."""
        self._end(None)
        hint = "; smaller tiles need less memory" if "memory" in str(error).lower() else ""
        self._say(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}{hint}")

    def _end(self, stopped: Request | None) -> None:
        """Make the widget ready for the next run. What a stopped one has found stays in view."""
        self._refresher.stop()
        if self._run is not None:
            self._run.worker = None  # they hold each other, and a QObject should end in this thread
        self._show_new_tiles()
        self._run, self._stopped = None, stopped
        if stopped is None:
            self._hide_live()
        self._set_running(False)

    def _hide_live(self) -> None:
        if self._live is not None and self._live[1] in self._viewer.layers:
            self._viewer.layers.remove(self._live[1])
        self._live = None

    def _refuse(self, error: NucleipanError) -> None:
        text = in_window(error)
        self._say(text, can_be_replaced(error))
        show_error(text)
        if isinstance(error, MissingPixelSizeError):
            self.form.mpp.setFocus()

    def _show_store(self, request: Request, result: SegmentResult) -> None:
        path = result.store.path.absolute()
        how = "found already" if result.summary is None else f"found in {result.seconds:.0f} s"
        lines = [f"{result.store.n_nuclei:,} nuclei {how}: {path}"]
        lines += [f"The slide {in_window(note)}." for note in result.notes]
        self._say("\n".join(lines))
        self._close_store(path)
        watch(self._viewer.layers)
        is_shown = self.form.layer_of(request.slide) is not None
        for data, more, kind in store_layers(path, request.slide):
            if kind != "image" or not is_shown:
                self._viewer.add_layer(Layer.create(data, more, kind))

    def _close_store(self, path: Path) -> None:
        """Remove the layers of a store: what they show is about to be replaced, or to be shown again."""
        for layer in [a for a in self._viewer.layers if a.metadata.get(STORE_KEY) == path]:
            self._viewer.layers.remove(layer)


def _live_layer(live: LiveNuclei) -> Labels:
    """Where the store's nuclei will be."""
    colormap = CyclicLabelColormap(colors=live.colors)
    layer = Labels(live.levels, multiscale=True, name=LIVE_NAME, colormap=colormap, opacity=1.0, **placed(live.mpp))
    outline(layer, live.mpp)
    return layer


def _kept(stopped: Stopped) -> str:
    if not stopped.n_tiles:
        return "No tile was finished yet."
    return f"{stopped.n_done} of {stopped.n_tiles} tiles are done and kept."
