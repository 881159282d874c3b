"""Scores of served pictures: which row of the buckets a request is, and what a judge is shown."""

from dataclasses import replace

import pytest
from judge_server import Server, settings

from danceflow.data.buckets import read_bucket
from danceflow.pictures import png_base64
from danceflow.service.served import ServedRow, now
from danceflow.watch.scores import score_served


def test_a_request_is_known_by_all_its_pictures_and_the_judge_sees_them(
    reported, server: Server
) -> None:
    params, paths = reported
    known = read_bucket(paths.bucket("local_edit"), "train")[0]
    source, target = (png_base64(known[name]["bytes"]) for name in ("source", "target"))
    one = ServedRow(now(), 3, "d" * 64, known["prompt"], True, 2, 1.0, 0.1, source, target)
    more = replace(one, further=(target, source))
    judge = settings(server.url, is_score=True, num_samples=9)
    evaluate = params.evaluate.model_copy(update={"judge": judge})
    found = score_served([one, more], params.model_copy(update={"evaluate": evaluate}), paths)
    assert [item.is_edit for item in found] == [True, True]
    assert found[0].score > 0.99  # by its world: the answer is exact
    assert found[1].score == pytest.approx(0.8)  # of the judge's marks, 8 and 8
    sc, pq = (request["messages"][0]["content"] for request in server.requests)
    assert "You are shown 3 pictures" in sc[0]["text"]
    shown = [part["image_url"]["url"].partition(",")[2] for part in sc[1:]]
    assert shown == [source, target, source, target]
    assert len(pq) == 2
