"""The kitchen: published numbers, every rule in a plain simulation, the exact posterior, folds."""

import pytest
import torch

from bayesmeta.tasks.cooking import Cooking
from tests.tasks.worlds import DOWN, DROP, END, LEFT, PICK_UP, RIGHT, STAY, UP, episode, generator, random_actions

FAMILY = Cooking()
KITCHEN = 1 + 4 * 3 + 16 * 2  # drawers hold 1, 3, 2


class PlainKitchen:
    """One kitchen, step by step, from the published rules and with none of the library's code."""

    def __init__(self, problem: int, first: int, second: int) -> None:
        self.drawers = {(2, i): problem // 4**i % 4 for i in range(3)}
        self.wanted = (first - 1, second - 1) if first else None
        self.asked, self.at, self.hand, self.pot, self.stage, self.t = [first, second], (1, 1), None, [], 0, 0

    def seen(self) -> list[int]:
        status = 2 if self.at == (1, 1) else 3 if self.at in self.drawers else 0
        pot = [*self.pot, *[4] * (3 - len(self.pot))]
        return [*self.at, status, 4 if self.hand is None else self.hand, *pot, *self.asked]

    def step(self, action: int) -> tuple[list[int], float, bool]:
        self.t += 1
        x, y = self.at
        if action in (LEFT, RIGHT, UP, DOWN):
            x += {LEFT: -1, RIGHT: 1}.get(action, 0)
            y += {DOWN: -1, UP: 1}.get(action, 0)
            self.at = (min(max(x, 0), 2), min(max(y, 0), 2))
        elif action == PICK_UP:
            if self.at in self.drawers:
                self.hand = self.drawers[self.at]
            elif self.at == (1, 1):
                self.hand = None
        elif action == DROP:
            if self.at == (1, 1) and len(self.pot) < 3 and self.hand is not None:
                self.pot.append(self.hand)
            self.hand = None
        if self.wanted is None:
            return self.seen(), 0.0, action == END
        reward, over = self.paid(action)
        if action == END:
            reward, over = reward - 0.1 * (20 - self.t), True
        return self.seen(), reward, over

    def paid(self, action: int) -> tuple[float, bool]:
        first, second = self.wanted
        wanted = first if self.stage < 2 else second
        if self.stage in (0, 2):
            if self.hand == wanted:
                self.stage += 1
                return 0.25, False
            return (-0.35 if action == PICK_UP else -0.1), False
        if self.pot[: (self.stage + 1) // 2] == [first, second][: (self.stage + 1) // 2]:
            if self.stage == 3:
                return 0.25, True
            self.stage += 1
            return 0.25, False
        if self.hand != wanted:
            self.stage -= 1
            return -0.35, False
        return -0.1, False


@pytest.mark.parametrize("explore", [False, True])
def test_environment_is_the_plain_simulation(explore):
    """Random kitchens and actions that stay near drawers and pot: every stage is reached, and every way back."""
    rows = 300
    params = FAMILY.sample(rows, "train", generator())
    params[::2] = 21.0  # all three drawers hold the same: what is asked for is found at once
    actions = random_actions(FAMILY, rows, 1, without=(END, STAY, 5))
    often = torch.tensor([RIGHT, PICK_UP, LEFT, DROP] * 5).unsqueeze(1)
    actions = torch.where(torch.rand(actions.shape, generator=generator(2)) < 0.8, often, actions)
    actions[:, :10] = random_actions(FAMILY, 10, 3)
    seen = episode(FAMILY.env(params), actions, seed=0, explore=explore)
    stages = set()
    for b in range(rows):
        kitchen = PlainKitchen(int(params[b, 0]), *seen.obs[b, 0, -2:].long().tolist())
        assert seen.obs[b, 0].tolist() == kitchen.seen()
        for t, action in enumerate(actions[:, b].tolist()):
            before = kitchen.stage
            obs, reward, over = kitchen.step(action)
            stages.add((before, kitchen.stage, over))
            assert seen.next_obs[b, t].tolist() == obs
            assert seen.reward[b, t].item() == pytest.approx(reward, abs=1e-6)
            assert bool(seen.terminated[b, t]) == over
            if over:
                break
    changes = {(0, 0, False), (0, 1, False), (1, 0, False), (1, 1, False), (1, 2, False), (2, 2, False)}
    changes |= {(2, 3, False), (3, 2, False), (3, 3, False), (3, 3, True), (0, 0, True)}
    assert explore or changes <= stages, changes - stages


def test_published_returns_of_the_test_kitchen():
    assert FAMILY.identifiers("test").tolist() == [[10.0]]
    assert FAMILY.reference_returns(FAMILY.identifiers("test"))["oracle"].item() == pytest.approx(7 / 15, abs=1e-5)


def pattern(problem: int) -> str:
    """Which drawers are equal: ``aab`` says that the first two are."""
    digits = [problem // 4**i % 4 for i in range(3)]
    return "".join("abc"[list(dict.fromkeys(digits)).index(digit)] for digit in digits)


def test_best_return_depends_on_which_drawers_are_equal():
    """1/3 where all three differ, 3/5 where none does; the published average over the training kitchens is 0.399."""
    problems = {pattern(p): p for p in range(64)}
    assert set(problems) == {"aaa", "aab", "aba", "abb", "abc"}
    found = FAMILY.reference_returns(torch.tensor([[float(p)] for p in problems.values()]))
    best = dict(zip(problems, found["oracle"].tolist(), strict=True))
    assert best["aaa"] == pytest.approx(3 / 5, abs=1e-5) and best["abc"] == pytest.approx(1 / 3, abs=1e-5)
    train = FAMILY.identifiers("train")[:, 0].long().tolist()
    assert sum(best[pattern(p)] for p in train) / 63 == pytest.approx(0.399, abs=5e-4)
    assert torch.allclose(found["still"], torch.tensor(-2.0))


def test_instructions_are_pairs_of_the_drawers():
    pairs = FAMILY.instructions(torch.tensor([[KITCHEN]]))[0].tolist()
    assert sorted(pairs) == sorted([a, b] for a in (2, 4, 3) for b in (2, 4, 3))
    pairs = FAMILY.instructions(torch.tensor([[10]]))[0].tolist()  # 2, 2, 0
    assert pairs.count([3, 3]) == 4 and pairs.count([3, 1]) == pairs.count([1, 3]) == 2 and pairs.count([1, 1]) == 1


def test_posterior_knows_the_drawers_that_were_opened():
    params = FAMILY.sample(20, "train", generator())
    actions = torch.tensor([RIGHT, PICK_UP, UP, PICK_UP, STAY, DOWN, DOWN, PICK_UP]).unsqueeze(1).expand(-1, 20)
    seen = episode(FAMILY.env(params), actions, explore=True)
    exact = FAMILY.posterior_over("all")
    scan = exact.scan(exact.init(20), seen.context(next_obs=True))
    entropy = torch.special.entr(scan.log_weights.exp()).sum(-1).reshape(9, 20)
    left = torch.tensor([64, 64, 16, 16, 4, 4, 4, 4, 1]).log().unsqueeze(1)
    assert torch.allclose(entropy, left.expand(-1, 20), atol=1e-5)
    assert torch.equal(scan.log_weights[-20:].argmax(1).float(), params[:, 0])


def test_posterior_is_the_kitchens_that_would_have_looked_the_same():
    params = FAMILY.sample(4, "train", generator(5))
    actions = random_actions(FAMILY, 4, 6, without=(END,))
    actions[:2] = torch.tensor([[RIGHT], [PICK_UP]])
    seen = episode(FAMILY.env(params), actions, explore=True)
    weights = FAMILY.exact.update(FAMILY.exact.init(4), seen.context(next_obs=True)).log_weights.exp()
    for b in range(4):
        same = []
        for problem in FAMILY.identifiers("train")[:, 0].long().tolist():
            kitchen = PlainKitchen(problem, 0, 0)
            looks = [kitchen.step(action)[0] for action in actions[:, b].tolist()]
            same.append(looks == seen.next_obs[b].tolist())
        expected = torch.tensor(same).float() / sum(same)
        assert torch.allclose(weights[b], expected, atol=1e-6) and sum(same) < 20


def test_nothing_tells_the_kitchen_before_a_drawer_is_opened():
    pool = FAMILY.identifiers("all")
    actions = random_actions(FAMILY, 1, 1, without=(END, PICK_UP)).expand(-1, 64)
    seen = episode(FAMILY.env(pool), actions, explore=True)
    assert (seen.next_obs == seen.next_obs[:1]).all()
    exact = FAMILY.posterior_over("all")
    weights = exact.update(exact.init(64), seen.context(next_obs=True)).log_weights.exp()
    assert torch.allclose(weights, torch.full_like(weights, 1 / 64))


def test_folds_are_a_partition_into_tests():
    tests = []
    for fold in range(8):
        family = Cooking(fold=fold)
        train, test = (family.identifiers(split)[:, 0].tolist() for split in ("train", "test"))
        assert len(test) == 8 and sorted(train + test) == list(range(64))
        tests += test
    assert sorted(tests) == list(range(64))
    assert {len(Cooking(fold=f, folds=5).identifiers("test")) for f in range(5)} == {12, 13}


@pytest.mark.parametrize("settings", [{"fold": 8}, {"fold": -1}, {"folds": 1}, {"folds": 65}])
def test_folds_that_there_are_not_are_refused(settings):
    with pytest.raises(ValueError, match="expected 2 <= folds <= 64 and fold = 0"):
        Cooking(**settings)


def test_contents_as_identifiers_are_the_same_kitchens():
    """What is seen, paid, asked for, drawn and inferred does not depend on how a kitchen is called."""
    other = Cooking(fold=2, identifier="contents")
    family = Cooking(fold=2)
    for split in ("train", "test"):
        numbers, contents = family.identifiers(split), other.identifiers(split)
        assert torch.equal((contents * torch.tensor([1, 4, 16])).sum(1, keepdim=True), numbers)
    params = contents[torch.arange(40) % 8]
    same = (params * torch.tensor([1.0, 4.0, 16.0])).sum(1, keepdim=True)
    often = torch.tensor([RIGHT, PICK_UP, LEFT, DROP] * 5).unsqueeze(1)
    actions = torch.where(torch.rand(20, 40, generator=generator(2)) < 0.8, often, random_actions(family, 40, 1))
    for explore in (False, True):
        one, two = (episode(f.env(p), actions, seed=0, explore=explore) for f, p in ((family, same), (other, params)))
        assert torch.equal(one.obs, two.obs) and torch.equal(one.reward, two.reward)
        assert torch.equal(one.next_obs, two.next_obs) and torch.equal(one.terminated, two.terminated)
    found = [f.exact.update(f.exact.init(40), x.context(next_obs=True)) for f, x in ((family, one), (other, two))]
    assert torch.equal(found[0].log_weights, found[1].log_weights)
    assert ((found[0].log_weights > -torch.inf).sum(1) < 56).any()  # a drawer was opened
    assert torch.equal(family.reference_returns(same)["oracle"], other.reference_returns(params)["oracle"])
    state, asked = (2, 1, 4, 4, 4, 4), (3, 1)
    drawn = [f.picture(state, asked, tuple(p[0].long().tolist())) for f, p in ((family, same), (other, params))]
    assert (drawn[0][0] == drawn[1][0]).all() and drawn[0][1] == drawn[1][1]


def test_identifiers_that_there_are_not_are_refused():
    with pytest.raises(ValueError, match="'number' or 'contents', got 'name'"):
        Cooking(identifier="name")
