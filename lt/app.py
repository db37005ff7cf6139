"""The screen of lt: three fields, a table of jobs, the log of the selected one, keys at the bottom.

Jobs run in the queue's own thread; the screen looks at them twice a second and never waits.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.coordinate import Coordinate
from textual.screen import ModalScreen
from textual.suggester import SuggestFromList
from textual.widgets import DataTable, Footer, Input, Static, TextArea

from backends.device_specs import SPECS
from lt import export, pareto, results
from lt.commands import COMMANDS, all_models, config_name, plan
from lt.export import number
from lt.jobs import Job, JobQueue, Status

COLUMNS = ("#", "Command", "Model", "Device", "Status", "Time", "Top-1", "Top-5", "t/s/u",
           "TTFT ms", "Speed is", "Output")  # fmt: skip
COLORS = {
    Status.WAITING: "dim", Status.RUNNING: "yellow", Status.FINISHED: "green",
    Status.FAILED: "bold red", Status.TIMED_OUT: "bold red", Status.CANCELLED: "dim",
}  # fmt: skip
LOW_SCREEN = 20  # rows: below them the log gives its place to the table


class TextScreen(ModalScreen[None]):
    """A text on the whole screen: a log, a plot, the list of commands."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,l,p,question_mark", "close", "Back")]

    def __init__(self, text: str, *, at_end: bool = False) -> None:
        super().__init__()
        self.text, self.at_end = text, at_end

    def compose(self) -> ComposeResult:
        yield TextArea(self.text, read_only=True, soft_wrap=False)
        yield Footer()

    def on_mount(self) -> None:
        area = self.query_one(TextArea)
        if self.at_end:
            area.move_cursor(area.document.end)
        area.focus()

    def action_close(self) -> None:
        self.dismiss()


class LtApp(App[None]):
    """Type a command, choose models and devices, press Enter; then read what came out."""

    TITLE = "lt"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #fields { height: 3; }
    #command { width: 2fr; }
    #models, #devices { width: 1fr; }
    #message { height: 1; padding: 0 1; }
    DataTable { height: 2fr; }
    #log { height: 1fr; border-top: solid $primary; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x,backspace", "cancel", "Cancel/remove"),
        Binding("X", "cancel_all", "Cancel all"),
        Binding("r", "restart", "Restart"),
        Binding("l", "log", "Log"),
        Binding("p", "plot", "Pareto"),
        Binding("m", "export", "Markdown"),
        Binding("question_mark", "commands", "Commands"),
        Binding("escape", "leave_field", "Fields", show=False),
        Binding("q,ctrl+c,ctrl+q", "quit", "Quit", priority=False),
    ]

    def __init__(self, queue: JobQueue, *, models: str = "default", devices: str = "N150") -> None:
        super().__init__()
        self.queue, self.first_models, self.first_devices = queue, models, devices
        self.shown: list[int] = []

    def compose(self) -> ComposeResult:
        with Horizontal(id="fields"):
            yield _field("command", "", [*COMMANDS, "pytest "], "command, e.g. table")
            yield _field("models", self.first_models, all_models(), "models or all")
            yield _field("devices", self.first_devices, list(SPECS), "devices or all")
        yield Static("Enter queues; Tab goes to the table; ? lists the commands", id="message")
        yield DataTable(cursor_type="row", zebra_stripes=True)
        yield Static(id="log")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(DataTable).add_columns(*COLUMNS)
        self.query_one("#command").focus()
        self.set_interval(0.5, self.refresh_jobs)
        self.refresh_jobs()

    def on_resize(self, event: events.Resize) -> None:
        """A low screen shows the table alone; `l` opens the log."""
        self.query_one("#log").display = event.size.height >= LOW_SCREEN

    def say(self, text: str, *, error: bool = False) -> None:
        """One line above the table."""
        self.query_one("#message", Static).update(Text(text, style="bold red" if error else ""))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter in any field queues what the three say."""
        texts = [
            self.query_one(f"#{name}", Input).value for name in ("command", "models", "devices")
        ]
        try:
            plans = plan(*texts)
        except ValueError as error:
            self.say(str(error), error=True)
            return
        self.queue.add(plans)
        self.say(f"{len(plans)} jobs queued")
        self.refresh_jobs()
        self.query_one(DataTable).focus()

    def refresh_jobs(self) -> None:
        """Bring the table and the log up to date, keeping the cursor on its job."""
        tables = self.query(DataTable)
        if not tables:  # the timer may tick once more while the screen is taken down
            return
        table, jobs = tables.first(), list(self.queue.jobs)
        numbers = [job.number for job in jobs]
        if numbers != self.shown:
            selected = self.selected()
            table.clear()
            for job in jobs:
                table.add_row(*self.cells(job), key=str(job.number))
            if selected is not None and selected.number in numbers:
                table.move_cursor(row=numbers.index(selected.number))
            self.shown = numbers
        else:
            for row, job in enumerate(jobs):
                for column, cell in enumerate(self.cells(job)):
                    place = Coordinate(row, column)
                    if table.get_cell_at(place) != cell:
                        table.update_cell_at(place, cell, update_width=True)
        self.refresh_log()

    def cells(self, job: Job) -> list[Text]:
        """A row of the table."""
        found, one = job.result, job.plan
        status = Text(job.shown_status, style=COLORS[job.status])
        texts = (number(found.top1, 2), number(found.top5, 2), number(found.speed),
                 number(found.ttft_ms), found.provenance, job.output)  # fmt: skip
        model = one.model if one.model in ("-", "default") else config_name(one.model)
        first = (str(job.number), one.command, model, one.device)
        return [*map(Text, first), status, Text(f"{job.seconds:.0f} s"), *map(Text, texts)]

    def refresh_log(self) -> None:
        """The last lines of the selected job's log."""
        view, job = self.query_one("#log", Static), self.selected()
        if job is None or not view.display:
            view.update("")
            return
        lines = [line for line in results.read_log(job.log, 8000).splitlines() if line.strip()]
        view.update(Text("\n".join(lines[-max(1, view.size.height - 1) :]), no_wrap=True))

    def selected(self) -> Job | None:
        """The job under the cursor."""
        row = self.query_one(DataTable).cursor_row
        if not 0 <= row < len(self.shown):
            return None
        return next((job for job in self.queue.jobs if job.number == self.shown[row]), None)

    def on_data_table_row_highlighted(self) -> None:
        self.refresh_log()

    def on_data_table_row_selected(self) -> None:
        self.action_log()

    def action_leave_field(self) -> None:
        """Escape goes from the table to the fields and back."""
        in_table = isinstance(self.focused, DataTable)
        (self.query_one("#command") if in_table else self.query_one(DataTable)).focus()

    def action_cancel(self) -> None:
        job = self.selected()
        if job is not None:
            self.queue.cancel(job)
            self.refresh_jobs()

    def action_cancel_all(self) -> None:
        self.queue.cancel_all()
        self.refresh_jobs()

    def action_restart(self) -> None:
        job = self.selected()
        if job is not None and self.queue.restart(job) is None:
            self.say("it still runs: cancel it first (x)", error=True)
        self.refresh_jobs()

    def action_log(self) -> None:
        job = self.selected()
        if job is not None:
            self.push_screen(TextScreen(results.read_log(job.log), at_end=True))

    def action_plot(self) -> None:
        """Accuracy against speed of the selected job's model and device."""
        job = self.selected()
        if job is None:
            return
        model, device = job.plan.model, job.plan.device
        own = [j for j in self.queue.jobs if (j.plan.model, j.plan.device) == (model, device)]
        points = pareto.points_of(own)
        if not points:
            self.say(f"{model} on {device}: no setting has accuracy and speed yet", error=True)
            return
        title = pareto.title_of(config_name(model), device, points)
        plot = pareto.text_plot(points, self.size.width - 4, max(8, self.size.height // 2))
        self.push_screen(TextScreen(f"{title}\n\n{plot}\n\n{pareto.table(points)}"))

    def action_export(self) -> None:
        path = export.save(self.queue.folder / "results.md", self.queue.jobs)
        self.say(f"wrote {Path(path)}")

    def action_commands(self) -> None:
        """All commands with what they do."""
        lines = [f"{name:<18} {command.help}" for name, command in COMMANDS.items()]
        lines.append(f"{'pytest ...':<18} as typed, for each model and device")
        self.push_screen(TextScreen("\n".join(lines)))


def _field(name: str, value: str, known: list[str], hint: str) -> Input:
    suggester = SuggestFromList(known, case_sensitive=False)
    return Input(value, placeholder=hint, id=name, suggester=suggester)
