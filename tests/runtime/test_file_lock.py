"""A file lock excludes other holders until it is released."""

import threading

from kd_jax.runtime.file_lock import file_lock


def test_second_holder_waits_for_the_first(tmp_path, capsys):
    events, holding, release = [], threading.Event(), threading.Event()

    def hold_first():
        with file_lock(tmp_path / "folder/lock", "build"):
            holding.set()
            release.wait()
            events.append("first")

    def hold_second():
        with file_lock(tmp_path / "folder/lock", "build"):
            events.append("second")

    threads = [threading.Thread(target=hold_first), threading.Thread(target=hold_second)]
    threads[0].start()
    holding.wait()
    threads[1].start()
    threads[1].join(0.2)
    assert threads[1].is_alive()
    release.set()
    for thread in threads:
        thread.join()
    assert events == ["first", "second"]
    assert "build: another process works on it; waiting" in capsys.readouterr().err
