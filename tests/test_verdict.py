"""The verdict on an adaptation, where the right one is known."""

from dataclasses import replace

import pytest
import torch
from learning import adapting, pairs, pretrained, recall

from urbancross import adaptation, training, verdict


def test_agreement_agrees_with_the_correlations_written_out():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 5, generator=generator), torch.randn(5, 5, generator=generator)
    for i, found in enumerate(verdict._row_correlations(a, b)):
        rows = torch.stack([torch.tensor([float(x[i, j]) for j in range(5) if j != i]) for x in (a, b)])
        assert found.item() == pytest.approx(torch.corrcoef(rows)[0, 1].item(), abs=1e-5)


def test_agreement_does_not_know_which_text_is_whose():
    model, target = pretrained(pairs(), head_epochs=2), pairs(seed=7, shift=1.0)
    order = torch.randperm(len(target.texts), generator=torch.Generator().manual_seed(1))
    shuffled = replace(target, texts=target.texts[order], text_keys=target.text_keys[order])
    torch.testing.assert_close(verdict.agreement(model, target), verdict.agreement(model, shuffled), atol=1e-4, rtol=0)


def test_what_helps_the_target_is_told_from_what_harms_it():
    source, target, kept_back = pairs(384), pairs(384, seed=107, shift=3.0), pairs(150, seed=108, shift=3.0)
    model = pretrained(source, head_epochs=6)
    before, was = verdict.agreement(model, kept_back), recall(model, kept_back)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def judged(**settings: object) -> tuple[verdict.Verdict, float]:
        model.load_state_dict(weights)
        told = {"segment_weight": 0, "steps": 150, "target_batch": 32, "head_lr": 1e-3} | settings
        adaptation.adapt(model, source, target, adapting(**told), training.ALONE, lambda event: None)
        return verdict.judge(before, verdict.agreement(model, kept_back)), recall(model, kept_back) - was

    good, gained = judged(method="oracle")
    bad, lost = judged(method="as-released", adversary_weight=1.0)
    assert gained > 0 > lost
    assert good.adapt
    assert str(good).startswith("use the adapted model (agreement")
    assert not bad.adapt
    assert str(bad).startswith("do not adapt")
    assert bad.change < 0


def test_no_change_is_no_reason_to_adapt():
    same = torch.rand(50)
    assert verdict.judge(same, same) == verdict.Verdict(float(same.mean()), float(same.mean()), 0.0, 0.0, 0.0, False)
