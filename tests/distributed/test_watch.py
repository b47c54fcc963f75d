"""What the watch makes of deaths, step by step and without Ray; and in which order a worker then goes through rows."""

from concurrent.futures import ThreadPoolExecutor

from urbancross.distributed.watch import DIED, HUNG, Orders, Watch
from urbancross.distributed.workers import StallGuard, steps

SHARD = "part-00000.parquet"


def test_a_first_attempt_is_quick_and_the_next_is_careful():
    watch = Watch()
    assert watch.start(SHARD, "a") == Orders()
    assert watch.start("other", "b") == Orders()
    assert watch.start(SHARD, "a") == Orders(careful=True)


def test_a_death_in_a_batch_then_two_alone_leave_one_tile_out():
    watch = Watch()
    watch.start(SHARD, "a")
    watch.start(SHARD, "a")
    watch.went_on(SHARD, 4, (4, 8))
    assert watch.start(SHARD, "a") == Orders(True, ((4, 8),))
    watch.went_on(SHARD, 1, (5, 6))
    assert watch.start(SHARD, "a") == Orders(True, ((4, 8),))
    watch.went_on(SHARD, 1, (5, 6))
    assert watch.start(SHARD, "a") == Orders(True, ((4, 8),), {5: DIED})


def test_two_deaths_at_different_tiles_are_bad_luck():
    watch = Watch()
    watch.start(SHARD, "a")
    watch.start(SHARD, "a")
    for at in ((4, 8), (4, 5), (6, 7), (7, 8)):
        watch.went_on(SHARD, at[0], at)
        orders = watch.start(SHARD, "a")
    assert orders.condemned == {}


def test_a_tile_that_hangs_alone_once_has_hung_twice():
    watch = Watch()
    watch.start(SHARD, "a")
    watch.start(SHARD, "a", "stacks 1")
    watch.went_on(SHARD, 4, (4, 8))
    watch.start(SHARD, "a", "stacks 2")
    watch.went_on(SHARD, 0, (4, 5))
    assert watch.start(SHARD, "a", "stacks 3").condemned == {4: HUNG}
    _, _, _, news = watch.progress()
    assert [stacks for _, stacks in news] == ["stacks 1", "stacks 2", "stacks 3", None]
    assert watch.progress()[3] == []


def test_a_shard_that_was_finished_and_comes_back_has_lost_no_worker():
    watch = Watch()
    watch.start(SHARD, "a")
    watch.finish(SHARD, 10)
    assert watch.start(SHARD, "b") == Orders()
    watch.publishing("never started")
    watch.went_on("never started", 3)
    assert watch.writing() == 0


def test_ten_deaths_without_a_batch_in_between_stop_the_stage_and_one_batch_starts_the_count_anew():
    watch = Watch()
    for _ in range(10):
        assert watch.start(SHARD, "a").stop is None
    watch.went_on(SHARD, 4)
    assert watch.start(SHARD, "a").stop is None
    for _ in range(8):
        assert watch.start(SHARD, "a").stop is None
    assert "workers died 10 times without getting through one batch" in (watch.start(SHARD, "a").stop or "")
    assert watch.start("another", "b").stop is not None


def test_a_node_that_goes_with_many_workers_stops_nothing_and_workers_that_all_die_again_do():
    watch = Watch()
    for worker in range(32):
        watch.start(f"shard {worker}", f"worker {worker}")
    for worker in range(16):  # two actors on each of eight GPUs
        assert watch.start(f"shard {worker}", "another").stop is None
    for worker in range(16, 32):
        assert watch.start(f"shard {worker}", "another").stop is None
    assert "workers died 33 times" in (watch.start("shard 0", "yet another").stop or "")


def test_many_workers_report_less_often_each():
    watch = Watch()
    assert watch.start("shard 0", "w").report_s == 0.25
    told = [watch.start(f"shard {number}", "w").report_s for number in range(1, 256)]
    assert told[30] == 0.32
    assert told[-1] == 2.56


def test_progress_counts_finished_shards_and_those_at_work_once():
    watch = Watch()
    watch.start("a", "w")
    watch.start("b", "w")
    watch.went_on("a", 4)
    watch.finish("b", 10)
    assert watch.progress()[0] == 14
    watch.start("a", "w")  # it died: its rows are not done
    assert watch.progress()[0] == 10


def test_steps_are_whole_batches_at_first_and_suspects_one_by_one_first_of_all_later():
    assert list(steps(10, 4, Orders())) == [(0, 4), (4, 8), (8, 10)]
    careful = Orders(True, ((4, 8),), {5: DIED})
    assert list(steps(10, 4, careful)) == [(4, 5), (6, 7), (7, 8), (0, 4), (8, 10)]
    assert list(steps(3, 1, Orders(True, (), {1: DIED}))) == [(0, 1), (2, 3)]
    assert list(steps(9, 4, Orders(True, (), {8: DIED}))) == [(0, 4), (4, 8)]
    assert list(steps(0, 4, Orders())) == []


def test_workers_that_end_and_begin_at_once_do_not_take_each_others_folder_away(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    guards = [StallGuard(60, "run") for _ in range(4)]
    for number, guard in enumerate(guards):
        guard.path = guard.folder / f"{number}.txt"  # as four processes have it

    def work(guard: StallGuard) -> None:
        for shard in range(500):
            assert guard.left_by_the_last(f"{shard}") is None
            with guard.at(f"of {guard.path.stem}"):
                pass

    with ThreadPoolExecutor(len(guards)) as pool:
        list(pool.map(work, guards))
    assert list(tmp_path.iterdir()) == []
