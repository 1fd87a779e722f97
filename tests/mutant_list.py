"""The mutants of `make mutants`: small faults in what matters most, each with the tests that must notice it.

The tests take seconds and need no service: those of the database run on SQLite.
"""

from __future__ import annotations

from dataclasses import dataclass

UNIT, CONTRACT, STORE = "tests/unit/test_", "tests/contract/test_", "tests/integration/test_"


@dataclass(frozen=True, slots=True)
class Mutant:
    """A text that occurs once in a file, what takes its place, and the tests of which one must fail then."""

    name: str
    file: str
    text: str
    replacement: str
    tests: tuple[str, ...]


MUTANTS = (
    # What callers get: the vector of each input, whole, under its index.
    Mutant(
        "vectors-in-reply-order",
        "providers/base.py",
        "ordered[np.asarray(indexes)] = vectors",
        "ordered[:] = vectors",
        (f"{CONTRACT}providers.py::test_a_shuffled_reply_is_put_right",),
    ),
    Mutant(
        "index-repeated",
        "providers/base.py",
        "if sorted(indexes) != list(range(count)):",
        "if max(indexes) >= count:",
        (f"{CONTRACT}providers.py::test_an_order_names_each_input_exactly_once",),
    ),
    Mutant(
        "vectors-not-counted",
        "providers/base.py",
        "if vectors.shape != (count, width):",
        "if vectors.shape[1] != width:",
        (f"{CONTRACT}providers.py::test_as_many_vectors_as_inputs_and_as_wide_as_requested",),
    ),
    Mutant(
        "vectors-of-nan",
        "providers/base.py",
        "if not finite.all():",
        "if not finite.any():",
        (f"{CONTRACT}providers.py::test_only_finite_numbers",),
    ),
    Mutant(
        "duplicates-only-last",
        "engine/jobs/recording/duplicate_outcomes.py",
        "self._duplicates_of.setdefault(first, []).append(index)",
        "self._duplicates_of[first] = [index]",
        (f"{STORE}duplicates.py::test_every_duplicate_of_an_input_gets_its_outcome",),
    ),
    # Jobs: one owner at a time, and the first result of an input stays.
    Mutant(
        "outcome-overwritten",
        "engine/jobs/recording/record_outcomes.py",
        "new = ~outcome_bits[positions]",
        "new = np.ones(len(positions), dtype=bool)",
        (f"{STORE}record.py::test_a_late_result_counts_where_there_is_none_and_never_overwrites[sqlite]",),
    ),
    Mutant(
        "record-without-fence",
        "engine/jobs/recording/record_outcomes.py",
        "if row.fence != shard.fence:",
        "if row.fence < shard.fence:",
        (f"{STORE}record.py::test_failures_of_a_worker_that_lost_its_shard_are_not_recorded[sqlite]",),
    ),
    Mutant(
        "live-lease-claimed",
        "engine/jobs/leasing/claim.py",
        "and_(Shard.state == ShardState.RUNNING, Shard.lease_until < db_now())",
        "and_(Shard.state == ShardState.RUNNING, Shard.lease_until > db_now())",
        (f"{STORE}claims.py::test_a_live_lease_is_nobody_elses_and_an_expired_one_anybodys[sqlite]",),
    ),
    Mutant(
        "heartbeat-without-fence",
        "engine/jobs/leasing/claim.py",
        ".where(Shard.id == shard.shard_id, Shard.fence == shard.fence, Shard.state == ShardState.RUNNING)\n"
        "            .values(lease_until=db_now() + store.settings.lease_s)",
        ".where(Shard.id == shard.shard_id, Shard.state == ShardState.RUNNING)\n"
        "            .values(lease_until=db_now() + store.settings.lease_s)",
        (f"{STORE}claims.py::test_a_stale_worker_can_neither_extend_nor_release_nor_let_go[sqlite]",),
    ),
    Mutant(
        "workers-remembered-for-weeks",
        "engine/jobs/maintenance/purge.py",
        "WORKER_RETENTION_S = 3600.0",
        "WORKER_RETENTION_S = 3_600_000.0",
        (f"{STORE}sweep.py::test_old_keys_and_workers_long_gone_are_forgotten[sqlite]",),
    ),
    Mutant(
        "preemption-of-other-project-late",
        "engine/jobs/execution/preemption.py",
        "MIN_SLICE_FOR_PROJECT_S = 1.0",
        "MIN_SLICE_FOR_PROJECT_S = 1000.0",
        (f"{STORE}give_way.py::test_how_long_a_shard_runs_before_another_preempts_it[sqlite-project]",),
    ),
    Mutant(
        "preemption-of-own-project-early",
        "engine/jobs/execution/preemption.py",
        "MIN_SLICE_S = 10.0",
        "MIN_SLICE_S = 1.0",
        (f"{STORE}give_way.py::test_how_long_a_shard_runs_before_another_preempts_it[sqlite-job]",),
    ),
    Mutant(
        "wait-reported-once",
        "engine/jobs/recording/wait_report.py",
        "REPORT_AGAIN_S = 10.0",
        "REPORT_AGAIN_S = 10_000.0",
        (f"{UNIT}wait_report.py",),
    ),
    # Money: what is billed, or may be, is in the ledger, and never above a job's ceiling.
    Mutant(
        "estimate-of-all-parts",
        "engine/ledger/usage_rows.py",
        "self.estimated = self.estimated or part.tokens_estimated",
        "self.estimated = self.estimated and part.tokens_estimated",
        (f"{UNIT}usage_buffer.py::test_a_row_with_any_estimate_in_it_is_estimated",),
    ),
    Mutant(
        "estimate-of-all-batches",
        "engine/jobs/recording/record_outcomes.py",
        "if any(part.tokens_estimated for part in new_parts):",
        "if all(part.tokens_estimated for part in new_parts):",
        (f"{STORE}record.py::test_one_estimate_makes_the_usage_of_the_job_an_estimate[sqlite-first]",),
    ),
    Mutant(
        "usage-buffer-without-cap",
        "engine/ledger/usage_buffer.py",
        "        if surplus > 0:\n",
        "        if surplus > MAX_BUFFERED_ROWS:\n",
        (f"{UNIT}usage_buffer.py::test_rows_beyond_the_cap_are_counted_and_the_gauge_tells_of_all_that_wait",),
    ),
    Mutant(
        "ambiguous-call-not-billed",
        "engine/ledger/call_cost.py",
        "        return UsageKind.AMBIGUOUS\n",
        "        return None\n",
        (f"{STORE}billing.py::test_a_call_without_an_answer_leaves_an_ambiguous_row[close]",),
    ),
    Mutant(
        "ambiguous-call-at-estimate",
        "engine/ledger/call_cost.py",
        "max_cost_of(batch, route) if kind is UsageKind.AMBIGUOUS else",
        "max_cost_of(batch, route) if kind is UsageKind.DELIVERED else",
        (f"{UNIT}money.py::test_a_call_without_use_is_charged_as_reported_or_estimated_or_at_its_highest_cost",),
    ),
    Mutant(
        "ceiling-ignored-by-late-results",
        "engine/jobs/recording/cost_limit.py",
        "cost_usd > await _unreserved(connection, shard):\n        return False",
        "cost_usd > await _unreserved(connection, shard):\n        return True",
        (f"{STORE}budget.py::test_a_late_result_is_taken_as_far_as_the_ceiling_goes[sqlite]",),
    ),
    # Providers: their limits and faults.
    Mutant(
        "slow-never-noticed",
        "engine/limiter/congestion.py",
        "SLOW_FACTOR = 4.0",
        "SLOW_FACTOR = 400.0",
        (f"{UNIT}recent_latency.py",),
    ),
    Mutant(
        "health-forgets-at-once",
        "engine/route_state/call_statistics.py",
        "DECAY = 0.998",
        "DECAY = 0.2",
        (f"{UNIT}blame.py::test_four_failures_are_conclusive_after_a_thousand_successes",),
    ),
    Mutant(
        "debts-lost-by-redis",
        "engine/limiter/coordinator.py",
        "self._bursts() if has_reconnected else self._decayed_debts(now)",
        "self._decayed_debts(now)",
        (f"{UNIT}coordinator.py",),
    ),
    Mutant(
        "slots-not-reserved-for-interactive-calls",
        "engine/limiter/bucket.py",
        "limit if interactive else limit - limit // BULK_HEADROOM",
        "limit",
        (f"{UNIT}bucket.py::test_bulk_leaves_places_and_lost_ones_come_back",),
    ),
    Mutant(
        "refused-credential-sent-again",
        "engine/route_state/credential_probe.py",
        "if refused is not None:",
        "if refused is not None and refused.status is None:",
        (f"{UNIT}credential_probe.py",),
    ),
    Mutant(
        "retry-after-for-days",
        "providers/retry_hints.py",
        "MAX_WAIT_S = 120.0",
        "MAX_WAIT_S = 120_000.0",
        (f"{UNIT}retry_hints.py::test_headers",),
    ),
    Mutant(
        "drift-checked-seldom",
        "engine/routing/drift.py",
        "CHECK_EVERY_S = 5.0",
        "CHECK_EVERY_S = 5000.0",
        (f"{STORE}drift.py::test_a_quarantine_by_another_process_is_read_within_five_seconds[alone-sqlite]",),
    ),
    # Access: a key is its owner's, until it is revoked.
    Mutant(
        "revoked-key-accepted-for-hours",
        "engine/access/keys.py",
        "\nCACHE_S = 20.0",
        "\nCACHE_S = 20_000.0",
        (f"{UNIT}keys.py::test_a_revoked_key_is_refused_by_every_process_within_twenty_seconds",),
    ),
    Mutant(
        "secret-of-key-not-compared",
        "engine/access/keys.py",
        "if row is None or not matches or not row.valid:",
        "if row is None or not row.valid:",
        (f"{UNIT}keys.py::test_every_wrong_key_gets_the_same_answer",),
    ),
    Mutant(
        "job-of-another-project",
        "engine/jobs/reading/job_rows.py",
        'Job.id == bindparam("job_id"), Job.project == bindparam("project"), Job.deleted_at.is_(None)',
        'Job.id == bindparam("job_id"), bindparam("project") != "", Job.deleted_at.is_(None)',
        (f"{CONTRACT}api_job_life.py::test_ids_that_are_not_yours_are_one_404",),
    ),
    Mutant(
        "lost-vector-taken-for-none",
        "engine/jobs/reading/result_pages.py",
        "return None if missing.any() else Page(",
        "return Page(",
        (f"{STORE}reading.py::test_a_purge_that_has_only_begun_is_noticed",),
    ),
    Mutant(
        "page-begins-with-its-block",
        "engine/jobs/reading/result_pages.py",
        "cast((first - VectorBlock.first_index) * row_bytes + 1, Integer)",
        "cast(0 * row_bytes + 1, Integer)",
        (f"{STORE}results.py::test_a_range_is_the_same_as_a_cut_of_the_whole",),
    ),
)
