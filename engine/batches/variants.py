"""Variants of a batch's job: which model and options lines run with, and what is stored of that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from engine.batches.line_checks import ChosenModel, VariantDraft
from engine.batches.lines import BatchLine, LineFault
from engine.batches.steps import StepParts
from engine.planning.packing import resolve_dimensions
from engine.routing.model_choice import choose_model
from engine.routing.option_warnings import option_warnings
from models.embedding import Options
from models.errors import RequestError, UnknownAlias

NAME_CHARS = 256
MAX_WARNINGS = 20


def choose_variant(parts: StepParts, line: BatchLine) -> ChosenModel | LineFault:
    """The model and options of the line, and of all with the same options_key; or why they cannot run.

    A model that does not exist makes an invalid request line; options that the model refuses fail the lines alone.
    """
    try:
        alias = parts.alias(line.model)
    except UnknownAlias:
        message = f"The provided model '{_printable(line.model)}' is not supported by the Batch API."
        return LineFault("model_not_found", message, "body.model", line.custom_id, status=404)
    try:
        alias, options = choose_model(parts.aliases, alias, line.options())
        return ChosenModel(alias, resolve_dimensions(alias, options.dimensions), options)
    except RequestError as error:
        status = 404 if isinstance(error, UnknownAlias) else 400
        return LineFault(
            error.code, error.message, error.param, line.custom_id, status=status, is_invalid_request_line=False
        )


def variant_rows(job_id: str, variants: Sequence[VariantDraft], user: str | None) -> list[dict[str, Any]]:
    """Rows of job_variants: the inputs of each variant follow those of the one before."""
    rows: list[dict[str, Any]] = []
    first_index = 0
    for variant in variants:
        model, fault = variant.model, variant.fault
        rows.append(
            {
                "job_id": job_id,
                "number": variant.number,
                "key": variant.key,
                "alias": _printable(variant.request.model) if model is None else model.alias.name,
                "space": "" if model is None else model.alias.space,
                "dimensions": 0 if model is None else model.width,
                "options": {} if model is None else _stored_options(model.options, user),
                "first_index": first_index,
                "inputs": variant.inputs,
                "ingested": 0,
                "refused": 0,
                "upload_hash": None,
                "error": None if fault is None else _stored_fault(fault),
            }
        )
        first_index += variant.inputs
    return rows


def job_columns(variants: Sequence[VariantDraft], user: str | None, *, users_differ: bool) -> dict[str, Any]:
    """The columns of the job that say how its inputs are embedded: those of the variant, where only one can run."""
    warnings = list(_warnings(variants, users_differ=users_differ))[:MAX_WARNINGS]
    models = [variant.model for variant in variants if variant.model is not None]
    if len(models) != 1:
        return {"warnings": warnings}
    model = models[0]
    return {
        "alias": model.alias.name,
        "space": model.alias.space,
        "dimensions": model.width,
        "input_type": model.options.input_type,
        "options": _stored_options(model.options, user),
        "warnings": warnings,
    }


def no_options() -> dict[str, Any]:
    """The options of a job that has variants."""
    return _stored_options(Options(), None)


def _stored_options(options: Options, user: str | None) -> dict[str, Any]:
    return {
        "input_type": options.input_type,
        "truncate": options.truncate,
        "user": user,
        "provider_options": options.provider_options,
    }


def _stored_fault(fault: LineFault) -> dict[str, Any]:
    return {"code": fault.code, "message": fault.message, "param": fault.param, "status": fault.status}


def _warnings(variants: Sequence[VariantDraft], *, users_differ: bool) -> Iterator[dict[str, str]]:
    if users_differ:
        message = "'user': the lines name different users, so that none is sent to the provider"
        yield {"code": "unsupported_parameter", "message": message}
    seen: set[tuple[str, str]] = set()
    for variant in variants:
        if variant.model is None:
            continue
        for each in option_warnings(variant.model.options, variant.model.alias.routes):
            code = "unsupported_parameter" if each.type == "unsupported" else each.type
            message = f"'{each.feature}': {each.details}"
            if (code, message) not in seen:
                seen.add((code, message))
                yield {"code": code, "message": message}


def _printable(name: str) -> str:
    """A caller's name of a model, as text columns can keep it."""
    return name[:NAME_CHARS].replace("\0", "\ufffd")
