"""`voxscore segment`: label maps of volumes, in their own geometry."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import voxscore
from voxscore.errors import UserError

if TYPE_CHECKING:
    from voxscore.evaluation import ReportItem
    from voxscore.segmentation import Outputs, Result
    from voxscore.volumes import Label, Volume

__all__ = ["segment"]

DEFAULT_BUNDLE = "hippocampus_segmentation"
DICOM_SEG = ".dcm"


def segment(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...", help="Volumes (.nii .nii.gz .nrrd .mha), folders of volumes, or DICOM series folders."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="A file for one input, a folder for several.")],
    bundle: Annotated[str, typer.Option(help="Name of an installed bundle, or a bundle's folder.")] = DEFAULT_BUNDLE,
    side: Annotated[
        str | None,
        typer.Option(help="left or right, for bundles of a paired structure.", show_default="the bundle's"),
    ] = None,
    series: Annotated[str | None, typer.Option(help="Which DICOM series: its number or UID.")] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also write class probabilities.")] = False,
    samples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Draw N samples of the posterior: also writes probabilities and entropy, and gives every volume an "
            "interval, of 95 % from N = 39. Needs a bundle that can, such as hippocampus_posterior.",
            show_default="one evaluation",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the samples; the same seed gives the same ones.", show_default="0")
    ] = None,
    nifti: Annotated[bool, typer.Option("--nifti", help="Also write NIfTI for DICOM input.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Also write a page with pictures and volumes.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print a machine-readable manifest.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")] = False,
) -> None:
    """Segment volumes with a bundle.

    The label map has the affine, shape and orientation of its input.
    A DICOM series gives a DICOM SEG that refers to it.

    [bold]Examples[/bold]

        voxscore segment crop.nii.gz --output crop_seg.nii.gz

        voxscore segment crops/ --output segmentations --report --probabilities

        voxscore segment right_crop.nrrd --output out --side right

        voxscore segment dicom_folder --series 13 --output out --nifti

        voxscore segment crop.nii.gz --output out --bundle hippocampus_posterior --samples 39 --report
    """
    if seed is not None and samples is None:
        raise UserError("--seed", "is the seed of samples, and none are asked for", "give --samples too")
    seed = seed or 0
    sources, failures = _find(inputs, series)
    total = len(sources) + len(failures)
    as_file = _is_file_name(output, total)
    page = None
    if report:
        page = output.with_name(_stem(output) + ".html") if as_file else output / "report.html"
        if page.exists() and not overwrite:
            raise UserError(page, "exists already", "choose another output, or replace it with --overwrite")
    manifest: dict[str, Any] = {"voxscore": voxscore.__version__}
    if sources:
        chosen = voxscore.bundles.find_bundle(bundle)
        on = voxscore.segmentation.resolve_device(device)
        segmenter = voxscore.segmentation.Segmenter(chosen, on, side)
        if samples is not None:
            segmenter.check_sampling(samples, seed)
        manifest |= segmenter.manifest()
    entries: list[dict[str, Any]] = []
    items: list[ReportItem] = []
    manifest |= {"results": entries, "failures": failures}
    # No output may land on an input, or on the output of an input before it.
    named = {source.resolve() for source in sources}
    taken: set[Path] = set()
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        steps = samples or 1
        task = progress.add_task("segmenting", total=len(sources) * steps)
        for i, source in enumerate(sources):
            progress.update(task, completed=i * steps)
            try:
                volume = voxscore.volumes.read_volume(source, series)
                outputs = _outputs(volume, output, as_file, probabilities, samples is not None, nifti)
                _check_free(outputs, source, volume, named, taken)
                taken.update(outputs.files())
                result = voxscore.segmentation.segment_volume(
                    segmenter, volume, outputs, overwrite, samples, seed, lambda: progress.advance(task)
                )
            except UserError as error:
                failures.append(_complain(error, source))
                continue
            entries.append(result.entry)
            for warning in result.entry["warnings"]:
                print(f"voxscore: warning: {source}: {warning}", file=sys.stderr)
            if page is not None:
                items.append(_report_item(segmenter.labels, result))
    if page is not None and items:
        title = f"voxscore {segmenter.bundle.name}"
        try:
            _write_page(page, voxscore.evaluation.segmentation_report(items, manifest, title), overwrite)
            manifest["report"] = {"path": str(page), "sha256": voxscore.volumes.sha256(page)}
        except UserError as error:
            failures.append(_complain(error, None))
    if json:
        print(json_format.dumps(manifest, indent=2))
    elif sys.stdout.isatty() and entries:
        Console(markup=False, emoji=False).print(_table(entries))
    if total > 1 and len(entries) < total:
        print(f"voxscore: {total - len(entries)} of {total} inputs failed (listed above)", file=sys.stderr)
    if failures:
        raise typer.Exit(1 if entries else 2)


def _find(inputs: Sequence[Path], series: str | None) -> tuple[list[Path], list[dict[str, str | None]]]:
    """The volumes the user named, each once, and an entry for each input that holds none."""
    sources: dict[tuple[Path, str], Path] = {}
    failures: list[dict[str, str | None]] = []
    for path in inputs:
        try:
            # A link keeps its own name, and so its own output.
            found = {(p.parent.resolve(), p.name): p for p in voxscore.volumes.find_volumes(path, series)}
        except UserError as error:
            failures.append(_complain(error, path))
        else:
            sources |= found
    return list(sources.values()), failures


def _complain(error: UserError, source: Path | None) -> dict[str, str | None]:
    """Tell the user, and return the manifest's entry; a report that failed has no input of its own."""
    print(f"voxscore: {error}", file=sys.stderr)
    return {"input": None if source is None else str(source), "error": str(error)}


def _is_file_name(output: Path, total: int) -> bool:
    """Whether the output is one file; otherwise it is a folder.

    Raises:
        UserError: it can be neither.
    """
    if output.is_dir():
        return False
    is_volume = _suffix(output) != ""
    if is_volume and total > 1:
        raise UserError(output, f"is the name of one file, but there are {total} inputs", "name a folder")
    if not is_volume and output.exists():
        raise UserError(output, "is a file, and not of a kind that voxscore writes", "name a folder")
    return is_volume


def _write_page(page: Path, html: str, overwrite: bool) -> None:
    with voxscore.volumes.written_whole(page, overwrite) as unfinished:
        # A file name need not be UTF-8.
        unfinished.write_text(html, encoding="utf-8", errors="backslashreplace")


def _suffix(path: Path) -> str:
    return voxscore.volumes.volume_suffix(path) or (DICOM_SEG if path.suffix.lower() == DICOM_SEG else "")


def _stem(path: Path) -> str:
    return path.name[: -len(_suffix(path))]


def _check_free(outputs: Outputs, source: Path, volume: Volume, named: set[Path], taken: set[Path]) -> None:
    """Refuse outputs that are inputs themselves, or outputs of an input before."""
    images = {file.resolve() for file in volume.header} if volume.format == "dicom" else set()
    for file in outputs.files():
        if file.resolve() in named | images:
            raise UserError(file, "is an input itself", "choose another output")
        if file in taken:
            raise UserError(
                source, f"would be written to {file} like an input before it", "give it an output of its own"
            )


def _outputs(volume: Volume, output: Path, as_file: bool, probabilities: bool, entropy: bool, nifti: bool) -> Outputs:
    """Names in the output folder follow the input's; the formats too, unless a file name asks for another."""
    if as_file:
        folder, name, suffix = output.parent, _stem(output), _suffix(output)
        if suffix == DICOM_SEG and volume.format != "dicom":
            raise UserError(
                output, f"a DICOM SEG needs DICOM images, not {volume.format}", "name a .nii.gz or .nrrd file"
            )
    else:
        folder, name = output, volume.name
        suffix = DICOM_SEG if volume.format == "dicom" else _suffix(volume.path)
    volume_format = ".nii.gz" if suffix == DICOM_SEG else suffix
    return voxscore.segmentation.Outputs(
        labels=folder / f"{name}{volume_format}" if nifti or suffix != DICOM_SEG else None,
        dicom_seg=folder / f"{name}{DICOM_SEG}" if suffix == DICOM_SEG else None,
        probabilities=folder / f"{name}_probabilities{volume_format}" if probabilities or entropy else None,
        entropy=folder / f"{name}_entropy{volume_format}" if entropy else None,
    )


def _report_item(labels: Mapping[int, Label], result: Result) -> ReportItem:
    posterior = result.segmentation.posterior
    sheet = partial(
        voxscore.evaluation.contour_sheet,
        result.volume.array,
        result.segmentation.labels,
        result.volume.affine,
        {value: label.color for value, label in labels.items()},
        {value: label.name for value, label in labels.items()},
        title=result.volume.name,
    )
    return voxscore.evaluation.ReportItem(
        result.volume.name,
        sheet(),
        result.entry["volumes_ml"],
        result.entry["warnings"],
        result.entry.get("volume_intervals_ml", {}),
        None if posterior is None else sheet(entropy=posterior.entropy),
    )


def _table(entries: list[dict[str, Any]]) -> Table:
    names = list(entries[0]["volumes_ml"])
    intervals = entries[0].get("volume_intervals_ml", {})
    table = Table("output", box=None)
    for name in names:
        level = f", {100 * intervals[name]['level']:.3g} % interval" if name in intervals else ""
        table.add_column(f"{name} [mL{level}]", justify="right")
    table.add_column("seconds", justify="right")
    for entry in entries:
        volumes = (_volume(entry, name) for name in names)
        table.add_row(entry["outputs"][0]["path"], *volumes, f"{entry['seconds']:.2f}")
    return table


def _volume(entry: dict[str, Any], name: str) -> str:
    volume = f"{entry['volumes_ml'][name]:.2f}"
    interval = entry.get("volume_intervals_ml", {}).get(name)
    return f"{volume} ({interval['low']:.2f} to {interval['high']:.2f})" if interval else volume
