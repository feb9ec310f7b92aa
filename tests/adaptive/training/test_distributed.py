"""What processes share, one process at a time; test_torchrun.py lets them meet."""

import random
import socket
from itertools import chain, count

import pytest
import torch
import torch.distributed as dist
from clips import SMALL_AGENT, WINDOW, smooth_latents
from torch import nn

from adaptive_window import AdaptiveWindowCreativeAgent
from adaptive_window.config import UsageError
from adaptive_window.training import data_parallel, distributed

CPU = torch.device("cpu")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def torchrun(monkeypatch):
    """Call it to make this process one of torchrun's, as torchrun does it: by environment variables."""

    def pretend(rank=0, size=1, **more):
        values = {
            "TORCHELASTIC_RUN_ID": "none",
            "TORCHELASTIC_RESTART_COUNT": 0,
            "RANK": rank,
            "WORLD_SIZE": size,
            "LOCAL_RANK": rank,
            "LOCAL_WORLD_SIZE": size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
            **more,
        }
        for name, value in values.items():
            monkeypatch.setenv(name, str(value))

    return pretend


def two_ranks(monkeypatch, torchrun, function):
    """What `function` returns or raises on rank 0 and then on rank 1, with one store between them."""
    store, outcomes = dist.HashStore(), []
    for rank in range(2):
        torchrun(rank, 2)
        monkeypatch.setattr(distributed, "_store", store)
        monkeypatch.setattr(distributed, "_turns", count())
        try:
            outcomes.append(function(rank))
        except BaseException as error:
            outcomes.append(error)
    return outcomes


def test_one_process_needs_no_group():
    with distributed.process_group(CPU):
        assert not dist.is_initialized()
        assert (distributed.rank(), distributed.size(), distributed.is_main()) == (0, 1, True)
        assert distributed.on_main(lambda: 3) == 3
        assert distributed.gather(4) == [4]
        assert distributed.largest(5, 6) == [5, 6]
        assert distributed.share([1, 2, 3]) == [1, 2, 3]
        distributed.mark_begun("run")
        assert not distributed.begun_before("run")
        distributed.wait_for_all()
    agent = nn.Linear(2, 2)
    assert data_parallel.wrap(agent, sync_batchnorm=True) is agent


def fail_in_a_group():
    with distributed.process_group(CPU):
        assert dist.get_backend() == "gloo"
        assert distributed.on_main(lambda: 3) == 3
        raise ValueError("boom")


def test_group_is_left_after_an_error_and_can_be_joined_again(torchrun):
    torchrun()
    for _ in range(2):
        with pytest.raises(ValueError, match="boom"):
            fail_in_a_group()
        assert not dist.is_initialized()


def test_more_processes_than_devices(torchrun, monkeypatch):
    torchrun(LOCAL_WORLD_SIZE=4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(UsageError, match="--nproc-per-node 4: this machine has 2 CUDA devices"),
        distributed.process_group(torch.device("cuda")),
    ):
        pass


def test_rank_0_works_and_all_have_the_result(monkeypatch, torchrun):
    calls = []

    def work():
        calls.append(distributed.rank())
        return {"loss": 0.5}

    assert two_ranks(monkeypatch, torchrun, lambda rank: distributed.on_main(work)) == [{"loss": 0.5}] * 2
    assert calls == [0]
    assert two_ranks(monkeypatch, torchrun, lambda rank: distributed.main_first(lambda: rank)) == [0, 1]


@pytest.mark.parametrize(
    ("raised", "elsewhere"),
    [(ValueError("x"), distributed.MainFailed), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_what_ends_rank_0_ends_the_others(monkeypatch, torchrun, raised, elsewhere):
    def fail():
        raise raised

    here, there = two_ranks(monkeypatch, torchrun, lambda rank: distributed.on_main(fail))
    assert here is raised
    assert type(there) is elsewhere


def test_only_a_run_that_an_earlier_attempt_began_is_gone_on_with(monkeypatch, torchrun):
    lasting = dist.HashStore()

    def attempt(number):
        torchrun(TORCHELASTIC_RESTART_COUNT=number)
        monkeypatch.setattr(distributed, "_lasting", lasting)
        monkeypatch.setattr(distributed, "_store", dist.PrefixStore(str(number), lasting))
        monkeypatch.setattr(distributed, "_turns", count())

    attempt(0)
    distributed.mark_begun("run")
    assert not distributed.begun_before("run")  # the first attempt has nothing to go on from
    attempt(1)
    assert distributed.begun_before("run")
    assert not distributed.begun_before("another")


def test_ranks_share_a_batch(torchrun):
    batch = random.Random(0).sample(range(100), 12)
    shares = []
    for rank in range(4):
        torchrun(rank, 4)
        shares.append(distributed.share(batch))
    assert [len(part) for part in shares] == [3] * 4
    assert [*chain(*shares)] == batch


def test_processes_of_a_machine_share_its_files(torchrun):
    files = list("abcdefg")
    shares = []
    for local in range(2):
        torchrun(2 + local, 4, LOCAL_RANK=local, LOCAL_WORLD_SIZE=2)
        shares.append(distributed.share_of_node(files))
    assert sorted(chain(*shares)) == files
    assert {len(part) for part in shares} == {3, 4}


def test_batch_size_must_be_divisible(torchrun):
    torchrun(1, 4)
    distributed.check_batch_size(8)
    with pytest.raises(UsageError, match=r"--batch-size 6 .* multiple of their number, 4"):
        distributed.check_batch_size(6)


def test_every_rank_has_its_own_seed(torchrun):
    seeds = []
    for rank in range(3):
        torchrun(rank, 3)
        seeds.append(distributed.rank_seed(7))
    assert len(set(seeds)) == 3
    assert seeds[0] == 7


def test_each_rank_gets_its_own_states_back(torchrun, monkeypatch):
    states = [{"cpu": torch.tensor(r), "numpy": torch.tensor(10 + r)} for r in range(2)]
    monkeypatch.setattr(distributed, "gather", lambda value: states)
    together = distributed.gather_by_rank(states[0])
    assert len(together) == 4
    for rank in range(2):
        torchrun(rank, 2)
        assert distributed.part_of_rank(together) == states[rank]
    torchrun(2, 3)
    assert distributed.part_of_rank(together) == {}


def test_joint_batchnorm_of_one_process_is_batchnorm(torchrun):
    """Values, gradients and running statistics over three batches, then eval mode; keys as they were."""
    plain = nn.Sequential(nn.BatchNorm1d(5), nn.Tanh()).double()
    with torch.no_grad():
        plain[0].weight.uniform_(0.5, 2)
        plain[0].bias.normal_()
    joint = nn.Sequential(nn.BatchNorm1d(5), nn.Tanh()).double()
    joint.load_state_dict(plain.state_dict())
    weight = joint[0].weight
    torchrun()
    with distributed.process_group(CPU):
        data_parallel.join_statistics(joint, sync_batchnorm=True)
        assert type(joint[0]) is data_parallel.JointBatchNorm
        assert joint[0].weight is weight
        for training in (True, True, True, False):
            x = torch.randn(4, 5, 7, dtype=torch.float64) * 3 + 100
            found = []
            for model in (plain, joint):
                model.train(training)
                model.zero_grad()
                leaf = x.clone().requires_grad_()
                y = model(leaf)
                y.square().sum().backward()
                found.append((y.detach(), leaf.grad, model[0].weight.grad, model[0].bias.grad))
            for a, b in zip(*found, strict=True):
                assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    assert plain.state_dict().keys() == joint.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.allclose(joint.state_dict()[name], value, rtol=1e-12, atol=0), name


def test_only_means_become_joint_without_sync_batchnorm():
    agent = AdaptiveWindowCreativeAgent(window_frames=WINDOW, **SMALL_AGENT)
    keys = agent.state_dict().keys()
    data_parallel.join_statistics(agent, sync_batchnorm=False)
    assert agent.training_mean is data_parallel.joint_batch_mean
    norms = [m for m in agent.modules() if isinstance(m, nn.BatchNorm1d)]
    assert {type(m) for m in norms} == {nn.BatchNorm1d}
    data_parallel.join_statistics(agent, sync_batchnorm=True)
    joint = [m for m in agent.modules() if isinstance(m, data_parallel.JointBatchNorm)]
    assert len(joint) == len(norms) == 6
    assert agent.state_dict().keys() == keys


@pytest.mark.parametrize("selector", ["mlp", "correlation"])
def test_every_parameter_gets_a_gradient(selector):
    """`DistributedDataParallel` would wait for one that got none, and is not told to look for such."""
    agent = AdaptiveWindowCreativeAgent(window_frames=WINDOW, selector=selector, **SMALL_AGENT)
    outputs, _, _ = agent(smooth_latents(2, seed=1), smooth_latents(2, seed=2))
    torch.stack(outputs).square().mean().backward()
    assert [name for name, parameter in agent.named_parameters() if parameter.grad is None] == []
