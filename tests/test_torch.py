"""`rmsjit.torch.RMSprop` beside ``torch.optim.RMSprop``; needs torch."""

import copy
import ctypes
import io
import itertools
import pickle
import re
import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.optim.optimizer import (  # noqa: E402
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from rmsjit.kernels import loader  # noqa: E402
from rmsjit.torch import RMSprop, reader  # noqa: E402
from strategies import run_python  # noqa: E402

pytestmark = pytest.mark.live

Theirs = torch.optim.RMSprop
CLASSES = (Theirs, RMSprop)
SLOTS = ("square_avg", "momentum_buffer", "grad_avg")
ULPS = 2  # of the largest magnitude that an operation of the step has seen
HALF_ULPS = 8  # torch rounds after each of up to seven operations
OPTIONS = [
    {"momentum": momentum, "centered": centered, "weight_decay": decay, "maximize": maximize}
    for momentum, centered, decay, maximize in itertools.product(
        (0, 0.9), (False, True), (0, 0.1), (False, True)
    )
]
OPTION_IDS = ["-".join(map(str, options.values())) for options in OPTIONS]
DTYPES = ("float32", "float64", "bfloat16", "float16", "complex64", "complex128")


def parameters(seed=0, dtype=torch.float32, shapes=((5, 7), (3,), (), (2, 3, 4, 5), (0, 2))):
    """Parameters with random values and gradients."""
    torch.manual_seed(seed)
    made = [torch.nn.Parameter(random(shape, dtype)) for shape in shapes]
    for p in made:
        p.grad = random(p.shape, dtype)
    return made


def random(shape, dtype):
    drawn = torch.randn(shape, dtype=dtype if dtype.is_complex else torch.float32)
    return drawn.to(dtype)


@pytest.fixture(params=["in one call", "by methods"])
def reading(request, monkeypatch):
    """Both ways to see what a step needs: in compiled code, and in Python."""
    if request.param == "by methods":
        monkeypatch.setattr(reader, "_functions", lambda: None)
        for kernel in ("same_items", "same_values", "has_item"):
            monkeypatch.setattr(loader, kernel, lambda: None)


in_both_ways = pytest.mark.usefixtures("reading")


def twins(made):
    """The same parameters and gradients in other memory."""
    others = [torch.nn.Parameter(p.detach().clone()) for p in made]
    for p, other in zip(made, others, strict=True):
        other.grad = None if p.grad is None else p.grad.clone()
    return others


def two_lists(**arguments):
    """One list of parameters for each of the two classes."""
    made = parameters(**arguments)
    return [made, twins(made)]


def new_gradients(*lists, seed):
    torch.manual_seed(seed)
    for same in zip(*lists, strict=True):
        gradient = random(same[0].shape, same[0].dtype)
        for p in same:
            p.grad = gradient.clone()


def real(tensor):
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()


def assert_close(got, expected, scale, dtype):
    """Within a few units in the last place of `scale`."""
    finfo = torch.finfo(dtype)
    ulps = HALF_ULPS if finfo.bits == 16 else ULPS
    unit = finfo.eps * scale.clamp(min=finfo.tiny)
    assert ((real(got) - real(expected)).abs() <= ulps * unit).all()


def assert_same_state(one, other, *, exact=False):
    """Two optimizers have state of the same kind, in torch's format, with close values."""
    assert one.state_dict().keys() == other.state_dict().keys()
    a, b = one.state_dict()["state"], other.state_dict()["state"]
    assert a.keys() == b.keys()
    for number in a:
        assert a[number].keys() == b[number].keys()
        for key, value in a[number].items():
            assert value.dtype == b[number][key].dtype
            assert value.shape == b[number][key].shape
            tolerance = {"rtol": 0, "atol": 0} if exact or key == "step" else {}
            torch.testing.assert_close(b[number][key], value, **tolerance)


def assert_same_parameters(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.detach(), other.detach())


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=OPTION_IDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_step_is_torchs_within_two_ulps(dtype, options):
    theirs = parameters(dtype=getattr(torch, dtype))
    theirs[3].data = theirs[3].data.to(memory_format=torch.channels_last)
    ours = twins(theirs)
    reference, optimizer = Theirs(theirs, **options), RMSprop(ours, **options)
    for step in range(4):
        new_gradients(theirs, ours, seed=step)
        before = [real(p) for p in theirs]
        held = {p: {key: real(s[key]) for key in s} for p, s in reference.state.items()}
        for one, other in zip(ours, theirs, strict=True):  # so that each step begins alike
            one.data.copy_(other.data)
            for key in optimizer.state.get(one, ()):
                optimizer.state[one][key].copy_(reference.state[other][key])
        reference.step()
        optimizer.step()
        for one, other, old in zip(ours, theirs, before, strict=True):
            mine, its = optimizer.state[one], reference.state[other]
            assert mine.keys() == its.keys()
            assert mine["step"] == its["step"] == step + 1
            scales = magnitudes(
                old, real(other), real(other.grad), held.get(other, {}), its, options
            )
            for name, scale in scales.items():
                got, expected = (one, other) if name == "variable" else (mine[name], its[name])
                assert_close(got, expected, scale, real_dtype_of(other))


def magnitudes(old, new, gradient, held, state, options):
    """The largest numbers that each result of a step was computed from.

    Where the variance is a small difference, its errors are relatively larger.
    """
    gradient = gradient.abs() + options["weight_decay"] * old.abs()
    start = {key: value.abs() for key, value in held.items()}
    square = real(state["square_avg"]).clamp(min=1e-300)
    largest = {"square_avg": square + start.get("square_avg", 0) + 0.01 * gradient**2}
    variance = square
    if options["centered"]:
        mean = real(state["grad_avg"])
        largest["grad_avg"] = mean.abs() + gradient * 0.01 + start.get("grad_avg", 0)
        variance = (square - mean**2).clamp(min=1e-300)
    ratio = gradient / variance.sqrt() * (largest["square_avg"] / variance)
    if options["momentum"]:
        ratio = ratio + start.get("momentum_buffer", 0)
        largest["momentum_buffer"] = ratio
    return largest | {"variable": old.abs() + new.abs() + 0.01 * ratio}


def real_dtype_of(tensor):
    return torch.view_as_real(tensor.detach()).dtype if tensor.is_complex() else tensor.dtype


def test_a_gradient_is_read_where_it_is_and_left_as_it_was():
    (p,) = parameters(shapes=[(64, 64)])
    before, address = p.grad.clone(), p.grad.data_ptr()
    RMSprop([p], maximize=True, weight_decay=0.1).step()
    assert torch.equal(p.grad, before)
    assert p.grad.data_ptr() == address


GRADIENTS = {
    "transposed": lambda g: g.t().contiguous().t(),
    "every second": lambda g: torch.stack([g, g], -1)[..., 0],
    "expanded": lambda g: g[:1].expand(g.shape),
    "lazily negated": lambda g: torch._neg_view(g),
    "requires grad": lambda g: g.clone().requires_grad_(),
}


@in_both_ways
@pytest.mark.parametrize("change", GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_of_other_layouts(change):
    theirs = parameters(shapes=[(4, 6), (4, 6)])
    ours = twins(theirs)
    for p in (theirs[0], ours[0]):
        p.grad = change(p.grad)
    for optimizer in (Theirs(theirs), RMSprop(ours)):
        optimizer.step()
        optimizer.step()
    assert_same_parameters(ours, theirs)


@in_both_ways
def test_a_lazily_negated_scalar_gradient():
    """What backward gives for a real scalar inside of a conjugated complex number."""
    theirs = [torch.nn.Parameter(torch.tensor(0.5))]
    ours = twins(theirs)
    for (p,), cls in ((theirs, Theirs), (ours, RMSprop)):
        z = torch.complex(torch.tensor(2.0), p).conj()
        (z.imag * 3).backward()
        cls([p]).step()
    assert_same_parameters(ours, theirs)


@in_both_ways
@pytest.mark.parametrize("shape", [(), (1,), (2,)])
def test_a_gradient_that_becomes_a_negative_view_of_the_same_memory(shape):
    theirs = [torch.nn.Parameter(torch.randn(shape))]
    ours = twins(theirs)
    for (p,), cls in ((theirs, Theirs), (ours, RMSprop)):
        z = torch.complex(torch.ones(shape), torch.full(shape, 2.0))
        p.grad = z.imag
        optimizer = cls([p])
        for _ in range(2):
            optimizer.step()
        p.grad.data = z.conj().imag
        assert p.grad.data_ptr() == z.imag.data_ptr()
        optimizer.step()
    assert_same_parameters(ours, theirs)


def test_a_conjugated_gradient():
    theirs = [torch.nn.Parameter(torch.randn(3, dtype=torch.complex64))]
    theirs[0].grad = torch.randn(3, dtype=torch.complex64)
    ours = twins(theirs)
    theirs[0].grad = theirs[0].grad.conj().resolve_conj()  # torch refuses a lazy one
    ours[0].grad = ours[0].grad.conj()
    for params, cls in ((theirs, Theirs), (ours, RMSprop)):
        cls(params).step()
    assert_same_parameters(ours, theirs)


@in_both_ways
def test_a_gradient_that_is_the_parameter_or_another_one():
    theirs = parameters(shapes=[(6,), (6,)])
    ours = twins(theirs)
    for params, cls in ((theirs, Theirs), (ours, RMSprop)):
        params[0].grad = params[0].detach()
        optimizer = cls(params)
        optimizer.step()
        params[1].grad = torch.zeros(6) + params[0].detach()
        optimizer.step()
    assert_same_parameters(ours[:1], theirs[:1])


@in_both_ways
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_a_gradient_of_zeros_without_memory(shape):
    """As derivatives of higher order can be."""
    theirs = parameters(shapes=[shape, (0,)])
    ours = twins(theirs)
    for params, cls in ((theirs, Theirs), (ours, RMSprop)):
        optimizer = cls(params, momentum=0.9)
        optimizer.step()
        params[0].grad = torch._efficientzerotensor(shape)
        optimizer.step()
    assert_same_parameters(ours, theirs)


@in_both_ways
def test_the_result_of_a_collective_operation():
    collectives = pytest.importorskip("torch.distributed._functional_collectives")
    theirs = parameters(shapes=[(3,), (2,)])
    ours = twins(theirs)
    for params, cls in ((theirs, Theirs), (ours, RMSprop)):
        optimizer = cls(params)
        for _ in range(2):
            params[0].grad = collectives.AsyncCollectiveTensor(torch.full((3,), 2.0))
            optimizer.step()
    assert_same_parameters(ours, theirs)


LAYOUTS = {
    "a slice": lambda: torch.randn(6, 8)[:, 1:5],
    "transposed": lambda: torch.randn(4, 6).t(),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "one column": lambda: torch.randn(6, 8)[:, :1],
    "permuted": lambda: torch.randn(2, 3, 4).permute(1, 2, 0),
}


def lists_of_a_layout(make, dtype):
    """The same parameter of a layout for each of the two classes."""
    torch.manual_seed(1)
    lists = [[torch.nn.Parameter(make().to(getattr(torch, dtype)))] for _ in range(2)]
    with torch.no_grad():
        lists[1][0].copy_(lists[0][0])
    return lists


@in_both_ways
@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_parameters_of_other_layouts(make, dtype):
    lists = lists_of_a_layout(make, dtype)
    optimizers = [cls(params, momentum=0.9) for params, cls in zip(lists, CLASSES, strict=True)]
    for step in range(3):
        new_gradients(*lists, seed=step)
        for optimizer in optimizers:
            optimizer.step()
    assert_same_parameters(*lists)
    assert_same_state(*optimizers)


def in_a_buffer(parameter, gradient):
    """The gradient with the strides of its parameter, among other numbers."""
    reach = 1 + sum((n - 1) * s for n, s in zip(parameter.shape, parameter.stride(), strict=True))
    buffer = torch.randn(reach).to(parameter.dtype)
    view = torch.as_strided(buffer, parameter.shape, parameter.stride())
    return view.copy_(gradient)


@in_both_ways
@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_with_the_strides_of_other_layouts(make, dtype):
    lists = lists_of_a_layout(make, dtype)
    optimizers = [cls(params, lr=0.5) for params, cls in zip(lists, CLASSES, strict=True)]
    for step in range(3):
        new_gradients(*lists, seed=step)
        lists[1][0].grad = in_a_buffer(lists[1][0], lists[1][0].grad)
        assert lists[1][0].grad.stride() == lists[1][0].stride()
        for optimizer in optimizers:
            optimizer.step()
    assert_same_parameters(*lists)


# --- autograd ---------------------------------------------------------------------------------


def test_a_step_is_noticed_by_autograd():
    (p,) = parameters(shapes=[(3,)])
    loss = (p * p).sum()
    version = p._version
    RMSprop([p]).step()
    assert p._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_step_leaves_the_mode_and_the_graph_alone():
    params = parameters()
    optimizer = RMSprop(params, momentum=0.9)
    assert torch.is_grad_enabled()
    optimizer.step()
    assert torch.is_grad_enabled()
    for p in params:
        assert p.requires_grad
        assert p.is_leaf
        assert not any(value.requires_grad for value in optimizer.state[p].values())
    with torch.no_grad():
        optimizer.step()


@pytest.mark.parametrize("cls", [Theirs, RMSprop])
def test_a_closure_is_called_with_gradients_enabled(cls):
    (p,) = parameters(shapes=[(3,)])
    optimizer = cls([p], lr=0.1)

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        first = optimizer.step(closure)
        second = optimizer.step(closure)
    assert second < first


class OursWithStep(RMSprop):
    """With a `step` of its own, to which torch adds its wrapper."""

    def step(self, closure=None):
        return super().step(closure)


@pytest.mark.parametrize(
    "cls", [Theirs, RMSprop, OursWithStep], ids=["theirs", "ours", "a subclass"]
)
def test_hooks_run_once_round_a_step(cls):
    (p,) = parameters(shapes=[(3,)])
    optimizer, calls = cls([p]), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    handle = optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert calls == ["before", "after", "before"]


@pytest.mark.parametrize(
    "cls", [Theirs, RMSprop, OursWithStep], ids=["theirs", "ours", "a subclass"]
)
def test_hooks_for_all_optimizers_run_once(cls):
    (p,) = parameters(shapes=[(3,)])
    optimizer, calls = cls([p]), []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("before")),
        register_optimizer_step_post_hook(lambda *_: calls.append("after")),
    ]
    optimizer.step()
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert calls == ["before", "after"]


@pytest.mark.parametrize("cls", [Theirs, RMSprop])
def test_hooks_get_the_arguments_and_may_replace_them(cls):
    (p,) = parameters(shapes=[(3,)])
    optimizer, seen = cls([p]), []

    def replace(found, arguments, named):
        seen.append((found is optimizer, arguments[1:], named))
        return (optimizer,), {"closure": lambda: 7.0}

    optimizer.register_step_pre_hook(replace)
    optimizer.register_step_post_hook(
        lambda _, arguments, named: seen.append((arguments[1:], sorted(named)))
    )
    assert optimizer.step(None) == 7.0
    assert seen == [(True, (None,), {}), ((), ["closure"])]


@pytest.mark.slow
@pytest.mark.parametrize(
    "cls", [Theirs, RMSprop, OursWithStep], ids=["theirs", "ours", "a subclass"]
)
def test_a_profiler_sees_a_step(cls):
    (p,) = parameters(shapes=[(3,)])
    optimizer = cls([p])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    records = {event.key: event.count for event in profile.key_averages()}
    assert records[f"Optimizer.step#{cls.__name__}.step"] == 1


def test_a_model_learns_as_with_torch():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    models = [model, copy.deepcopy(model)]
    x = torch.randn(64, 8)
    y = x.square().sum(1, keepdim=True)
    optimizers = [
        cls(m.parameters(), lr=1e-3, momentum=0.9)
        for cls, m in zip((Theirs, RMSprop), models, strict=True)
    ]
    losses = []
    for m, optimizer in zip(models, optimizers, strict=True):
        for _ in range(50):
            optimizer.zero_grad()
            loss = (m(x) - y).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[1] < 60


def test_a_lazy_module_is_checked_once_it_has_parameters():
    module = torch.nn.LazyLinear(2)
    optimizer = RMSprop(module.parameters())
    module(torch.ones(3, 4)).sum().backward()
    before = module.weight.detach().clone()
    optimizer.step()
    assert (module.weight != before).all()


def test_steps_in_and_out_of_inference_mode():
    (p,) = parameters(shapes=[(3,)])
    optimizer = RMSprop([p])
    with torch.inference_mode():
        optimizer.step()
    optimizer.step()
    assert optimizer.state[p]["step"] == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_function_may_take_steps():
    model = torch.nn.Linear(3, 1)
    optimizer = RMSprop(model.parameters())

    @torch.compile(backend="eager")
    def train(x):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    for _ in range(3):
        train(torch.ones(2, 3))
    assert optimizer.state[model.weight]["step"] == 3


# --- groups -----------------------------------------------------------------------------------


def test_groups_have_settings_of_their_own():
    lists = two_lists()
    optimizers = []
    for params, cls in zip(lists, (Theirs, RMSprop), strict=True):
        optimizer = cls(
            [
                {"params": params[:2], "lr": 0.1, "momentum": 0.5},
                {"params": params[2:3], "centered": True, "weight_decay": 0.1},
            ],
            lr=0.01,
        )
        optimizer.step()
        optimizer.add_param_group({"params": params[3:], "alpha": 0.5})
        optimizer.step()
        optimizers.append(optimizer)
    assert_same_parameters(*lists)
    assert_same_state(*optimizers)
    assert [g.keys() for g in optimizers[0].param_groups] == [
        g.keys() for g in optimizers[1].param_groups
    ]


def test_settings_of_a_group_may_change_between_steps():
    lists = two_lists()
    optimizers = [cls(params) for cls, params in zip(CLASSES, lists, strict=True)]
    for step, changes in enumerate(
        [{}, {"lr": 0.5}, {"weight_decay": 0.1}, {"maximize": True}, {"lr": torch.tensor(0.2)}]
    ):
        new_gradients(*lists, seed=step)
        for optimizer in optimizers:
            optimizer.param_groups[0].update(changes)
            optimizer.step()
    assert_same_parameters(*lists)
    assert_same_state(*optimizers)


@pytest.mark.parametrize("kind", [torch.tensor, np.array], ids=["tensor", "array"])
@pytest.mark.parametrize("name", ["lr", "alpha", "eps", "momentum", "weight_decay"])
def test_numbers_may_change_in_their_tensors(name, kind):
    lists = two_lists(shapes=[(3,)])
    value = kind(0.5)
    optimizers = [
        Theirs(lists[0], **{"lr": 0.01, name: 0.5}),
        RMSprop(lists[1], **{"lr": 0.01, name: value}),
    ]
    for step in range(3):
        new_gradients(*lists, seed=step)
        for optimizer in optimizers:
            optimizer.step()
        value *= 0.5
        optimizers[0].param_groups[0][name] *= 0.5
    assert_same_parameters(*lists)


def test_the_default_device_may_be_another():
    lists = two_lists(shapes=[(3,)])
    with torch.device("meta"):
        optimizers = [cls(params) for cls, params in zip(CLASSES, lists, strict=True)]
        optimizers[1].step()
    optimizers[0].step()
    assert_same_parameters(*lists)


def test_momentum_that_is_raised_later_starts_from_zero():
    """torch raises KeyError there."""
    (p,) = parameters(shapes=[(3,)])
    optimizer = RMSprop([p])
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.9
    optimizer.step()
    assert optimizer.state[p]["momentum_buffer"].abs().min() > 0
    assert optimizer.state[p]["step"] == 2


def test_named_parameters():
    model = torch.nn.Linear(2, 3)
    optimizer = RMSprop(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


@in_both_ways
def test_parameters_without_gradients_are_left_alone():
    lists = two_lists()
    optimizers = [cls(params) for cls, params in zip(CLASSES, lists, strict=True)]
    for step, missing in enumerate([(0,), (), (0, 2), (0, 1, 2, 3, 4), (0,), ()]):
        new_gradients(*lists, seed=step)
        for params, optimizer in zip(lists, optimizers, strict=True):
            for number in missing:
                params[number].grad = None
            optimizer.step()
    assert_same_parameters(*lists)
    assert_same_state(*optimizers)


def test_a_parameter_that_is_used_twice():
    """Tied weights are one parameter."""
    lists = []
    for cls in (Theirs, RMSprop):
        torch.manual_seed(3)
        encode, decode = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        decode.weight = encode.weight
        model = torch.nn.Sequential(encode, decode)
        optimizer = cls(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        lists.append(list(model.parameters()))
    assert_same_parameters(*lists)


def test_two_parameters_on_one_memory_have_state_of_their_own():
    lists, optimizers = [], []
    for cls in (Theirs, RMSprop):
        (p,) = parameters(shapes=[(4,)])
        alias = torch.nn.Parameter(p.data)
        alias.grad = 2 * p.grad
        optimizer = cls([p, alias], momentum=0.9, weight_decay=0.1)
        optimizer.step()
        optimizer.step()
        lists.append([p, alias])
        optimizers.append(optimizer)
    assert_same_parameters(*lists)
    assert_same_state(*optimizers)


@pytest.mark.parametrize("cls", [Theirs, RMSprop])
def test_views_of_one_buffer(cls):
    flat = torch.zeros(10)
    params = [torch.nn.Parameter(flat[:4]), torch.nn.Parameter(flat[4:])]
    for p in params:
        p.grad = torch.ones(p.shape)
    cls(params, lr=0.1, alpha=0.0).step()
    torch.testing.assert_close(flat, torch.full((10,), -0.1))


# --- schedulers and scalers ---------------------------------------------------------------------

SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "ExponentialLR": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.8),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
    "LinearLR": lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, 0.0, 4),  # to -5.6e-19
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 3),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [3],
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # of torch 2.7, by its own schedulers
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers(make):
    lists = two_lists()
    optimizers = [
        cls(params, lr=0.1, momentum=0.9) for cls, params in zip(CLASSES, lists, strict=True)
    ]
    schedulers = [make(optimizer) for optimizer in optimizers]
    for step in range(6):
        new_gradients(*lists, seed=step)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        assert schedulers[0].get_last_lr() == schedulers[1].get_last_lr()
    assert_same_parameters(*lists)


def test_reduce_on_plateau():
    (p,) = parameters(shapes=[(3,)])
    optimizer = RMSprop([p], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=0)
    for _ in range(3):
        scheduler.step(1.0)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_gradient_scaler_skips_a_step_that_overflowed():
    lists = two_lists()
    optimizers = [cls(params) for cls, params in zip(CLASSES, lists, strict=True)]
    for optimizer, params in zip(optimizers, lists, strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)
        for step in range(4):
            new_gradients(params, seed=step)
            scaler.scale(torch.zeros(()))
            with torch.no_grad():
                for p in params:
                    p.grad *= scaler.get_scale()
                if step == 2:
                    params[0].grad[0, 0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
    assert_same_parameters(*lists)
    assert_same_state(*optimizers)
    assert optimizers[1].state[lists[1][0]]["step"] == 3


# --- sparse gradients -------------------------------------------------------------------------


def sparse(indices, values, rows=6):
    return torch.sparse_coo_tensor(
        torch.tensor([indices]), torch.tensor(values), (rows, len(values[0])), check_invariants=True
    )


@in_both_ways
@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_a_sparse_gradient_updates_the_rows_that_it_names(coalesced, dtype):
    dtype = getattr(torch, dtype)
    table = torch.nn.Parameter(torch.ones(6, 2, dtype=dtype))
    rows = torch.nn.Parameter(torch.ones(2, 2, dtype=dtype))
    gradient = sparse([4, 1, 4], [[1.0, 2.0], [3.0, 4.0], [0.5, 0.5]]).to(dtype)
    table.grad = gradient.coalesce() if coalesced else gradient
    rows.grad = torch.tensor([[3.0, 4.0], [1.5, 2.5]], dtype=dtype)
    other = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    other.grad = torch.ones(3, dtype=dtype)
    options = {"momentum": 0.9, "weight_decay": 0.1}
    optimizer, reference = RMSprop([table, other], **options), Theirs([rows], **options)
    for _ in range(2):
        optimizer.step()
        reference.step()
    torch.testing.assert_close(table.detach()[[1, 4]], rows.detach())
    assert (table.detach()[[0, 2, 3, 5]] == 1).all()
    for key in ("square_avg", "momentum_buffer"):
        held = optimizer.state[table][key]
        torch.testing.assert_close(held[[1, 4]], reference.state[rows][key])
        assert (held[[0, 2, 3, 5]] == 0).all()


def test_sparse_embeddings_train():
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(20, 4, sparse=True)
    head = torch.nn.Linear(4, 1)
    optimizer = RMSprop([*embedding.parameters(), *head.parameters()], lr=0.01)
    ids, losses = torch.tensor([3, 3, 7, 11]), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (head(embedding(ids)) - 1).square().mean()
        loss.backward()
        assert embedding.weight.grad.is_sparse
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert optimizer.state[embedding.weight]["square_avg"].any(1).nonzero().ravel().tolist() == [
        3,
        7,
        11,
    ]


# --- state ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS[::2], ids=OPTION_IDS[::2])
@pytest.mark.parametrize(("first", "second"), [(Theirs, RMSprop), (RMSprop, Theirs)])
def test_a_run_goes_on_with_the_other_class(first, second, options):
    params = parameters()
    whole = twins(params)
    one, through = first(params, **options), Theirs(whole, **options)
    for step in range(3):
        new_gradients(params, whole, seed=step)
        one.step()
        through.step()
    other = second(params, lr=1.0, **options)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert other.param_groups[0]["lr"] == 0.01
    assert_same_state(one, other, exact=True)
    for step in range(3):
        new_gradients(params, whole, seed=10 + step)
        other.step()
        through.step()
    assert_same_parameters(params, whole)
    assert_same_state(other, through)


def test_a_file_of_torch_goes_both_ways():
    params = parameters()
    optimizer = RMSprop(params, momentum=0.9)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for cls in (Theirs, RMSprop):
        other = cls(params, momentum=0.9)
        other.load_state_dict(state)
        assert_same_state(optimizer, other, exact=True)


def test_state_dict_has_torchs_keys():
    params = parameters()
    optimizers = [cls(params, momentum=0.9, centered=True) for cls in (Theirs, RMSprop)]
    for optimizer in optimizers:
        optimizer.step()
    theirs, ours = (optimizer.state_dict() for optimizer in optimizers)
    assert ours["param_groups"] == theirs["param_groups"]
    assert {k: [*v] for k, v in ours["state"].items()} == {
        k: [*v] for k, v in theirs["state"].items()
    }


def test_loaded_counts_are_copies():
    params = parameters()
    optimizer = RMSprop(params)
    params[1].grad = None
    optimizer.step()
    other = RMSprop(params)
    other.load_state_dict(optimizer.state_dict())
    assert other.state_dict()["state"].keys() == {0, 2, 3, 4}
    other.step()
    assert optimizer.state[params[0]]["step"] == 1
    assert other.state[params[0]]["step"] == 2


@in_both_ways
def test_state_of_another_layout_is_put_in_order():
    lists = two_lists(shapes=[(3, 4)])
    optimizers = [cls(params) for cls, params in zip(CLASSES, lists, strict=True)]
    for optimizer, params in zip(optimizers, lists, strict=True):
        optimizer.step()
        held = optimizer.state[params[0]]
        held["square_avg"] = held["square_avg"].t().contiguous().t()
        optimizer.step()
    assert_same_parameters(*lists)
    assert_same_state(*optimizers)


@in_both_ways
def test_state_that_the_user_changes_is_used():
    lists = two_lists()
    optimizers = [cls(params) for cls, params in zip(CLASSES, lists, strict=True)]
    for optimizer, params in zip(optimizers, lists, strict=True):
        optimizer.step()
        optimizer.state[params[0]]["square_avg"].fill_(4.0)  # in place
        optimizer.step()
        optimizer.state[params[1]]["square_avg"] = torch.full((3,), 9.0)  # another tensor
        optimizer.step()
        optimizer.state[params[0]]["step"] = torch.tensor(100.0)
        optimizer.step()
        optimizer.state[params[2]] = {}  # another dict
        optimizer.step()
        del optimizer.state[params[3]]
        optimizer.step()
    assert_same_parameters(*lists)
    assert_same_state(*optimizers)
    assert optimizers[1].state[lists[1][0]]["step"] == 103


@in_both_ways
def test_memory_of_parameters_may_be_replaced():
    lists = two_lists(shapes=[(3, 3), (4,)])
    optimizers = [cls(params) for cls, params in zip(CLASSES, lists, strict=True)]
    for optimizer, params in zip(optimizers, lists, strict=True):
        optimizer.step()
        params[0].data = params[0].data + 1
        optimizer.step()
        params[0].data = params[0].data.t()
        params[0].grad = params[0].grad.t()
        optimizer.step()
    assert_same_parameters(*lists)


@in_both_ways
def test_a_parameter_may_be_transposed_where_it_is():
    """Under a gradient that keeps its layout."""
    lists = two_lists(shapes=[(7, 7)])
    for (p,), cls in zip(lists, CLASSES, strict=True):
        optimizer = cls([p])
        optimizer.step()
        p.data = p.data.t()
        optimizer.step()
    assert_same_parameters(*lists)


@in_both_ways
def test_no_memory_is_kept_alive_that_was_replaced():
    (p,) = parameters(shapes=[(1000,)])
    optimizer = RMSprop([p])
    optimizer.step()
    old = weakref.ref(p.data.untyped_storage())
    gradient = weakref.ref(p.grad)
    p.data = torch.zeros(1000)
    optimizer.step()
    p.grad = None
    assert old() is None
    assert gradient() is None


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_go_on_by_themselves(way):
    params = parameters()
    optimizer = RMSprop(params, momentum=0.9, num_threads=1)
    optimizer.step()
    pair = (params, optimizer)
    made, other = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert type(other) is RMSprop
    assert_same_state(optimizer, other, exact=True)
    before = [p.detach().clone() for p in params]
    new_gradients(made, seed=1)
    other.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    new_gradients(params, seed=1)
    optimizer.step()
    assert_same_parameters(made, params)
    assert_same_state(optimizer, other, exact=True)


def test_pickle_stays_small():
    """Counts lie side by side, and pickle writes the memory of each view anew."""
    params = parameters(shapes=[(1,)] * 1000)
    optimizers = [cls(params) for cls in (Theirs, RMSprop)]
    for optimizer in optimizers:
        optimizer.step()
    theirs, ours = (len(pickle.dumps(optimizer.state_dict())) for optimizer in optimizers)
    assert ours < 2 * theirs


def test_counts_of_an_odd_kind():
    """As other classes with torch's layout have them."""
    params = parameters()
    optimizer = RMSprop(params)
    optimizer.step()
    for number, p in enumerate(params):
        count = torch.tensor(float(number))
        optimizer.state[p]["step"] = count if number % 2 else torch.tensor([float(number)])
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in params] == [1, 2, 3, 4, 5]


def test_what_a_state_lacks_is_added():
    (p,) = parameters(shapes=[(3,)])
    optimizer = RMSprop([p], centered=True)
    given = torch.ones(3)
    optimizer.state[p]["square_avg"] = given
    optimizer.step()
    assert sorted(optimizer.state[p]) == ["grad_avg", "square_avg", "step"]
    assert optimizer.state[p]["square_avg"] is given
    assert optimizer.state[p]["step"] == 1


@in_both_ways
def test_shared_memory():
    """As Hogwild has it: parameters and state are moved to shared memory in place."""
    params = parameters()
    optimizer = RMSprop(params, momentum=0.9, num_threads=1)
    optimizer.step()
    for p in params:
        p.share_memory_()
        for value in optimizer.state[p].values():
            value.share_memory_()
    held = [dict(optimizer.state[p]) for p in params]
    before = [p.detach().clone() for p in params]
    optimizer.step()
    for p, kept, old in zip(params, held, before, strict=True):
        assert p.is_shared()
        assert not p.numel() or not torch.equal(p, old)
        assert all(optimizer.state[p][key] is value for key, value in kept.items())
        assert kept["step"] == 2


@in_both_ways
def test_parameters_may_be_swapped_after_a_step():
    """Which torch refuses for tensors that it sees held elsewhere."""
    theirs, ours = (parameters(shapes=[(3,), (2,)]) for _ in CLASSES)
    for params, cls in ((theirs, Theirs), (ours, RMSprop)):
        optimizer = cls(params)
        optimizer.step()
        other = torch.nn.Parameter(torch.ones(3))
        other.grad = torch.ones(3)
        torch.utils.swap_tensors(params[0], other)
        optimizer.step()
    assert_same_parameters(ours, theirs)


@in_both_ways
def test_counts_that_alone_are_moved_to_shared_memory():
    params = parameters(shapes=[(3,), (2,)])
    optimizer = RMSprop(params)
    optimizer.step()
    counts = [optimizer.state[p]["step"] for p in params]
    counts[0].share_memory_()
    optimizer.step()
    assert counts == [2, 2]


# --- reading tensors in one call --------------------------------------------------------------

has_table = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="torch has no C function for it"
)


@has_table
def test_tensors_are_read_in_one_call_where_torch_has_a_function_for_it():
    tensors = [torch.ones(2, 3).t(), torch.nn.Parameter(torch.ones(())), torch.ones(0, 2)]
    read = reader.reader_for(tensors)
    others = [torch.zeros(2, 3).t(), torch.zeros(()), torch.zeros(0, 2)]
    assert read.addresses(others).tolist() == [t.data_ptr() for t in others]


class Ours(torch.Tensor):
    """A tensor whose class could change what its methods return."""


OTHERS = {
    "fewer": (lambda t: t[:1], True),
    "another shape": (lambda t: [t[0], t[1][:3]], True),
    "another number of axes": (lambda t: [t[0], t[1].reshape(2, 2)], True),
    "other strides": (lambda t: [t[0].t().contiguous().t(), t[1]], True),
    "another dtype": (lambda t: [t[0], t[1].view(torch.int32)], True),
    "a class of one's own": (lambda t: [t[0].as_subclass(Ours), t[1]], True),
    "no tensor": (lambda t: [t[0], t[1].numpy()], True),
    "sparse": (lambda t: [t[0].to_sparse(), t[1]], False),
    "on no device": (lambda t: [t[0].to("meta"), t[1]], False),
}


@has_table
@pytest.mark.parametrize(("change", "described"), OTHERS.values(), ids=OTHERS)
def test_tensors_that_are_not_read(change, described):
    tensors = [torch.ones(2, 3), torch.ones(4)]
    read = reader.reader_for(tensors)
    assert read.addresses(change(tensors)) is None
    assert read.is_useful == described  # and no error is left for the next call of Python's


@has_table
def test_the_stride_of_one_element_has_no_meaning():
    read = reader.reader_for([torch.ones(1, 3)])
    other = torch.ones(5, 3)[::5]
    assert other.stride() != (3, 1)
    assert read.addresses([other]).tolist() == [other.data_ptr()]


@pytest.mark.parametrize("version", [None, 2])
def test_a_table_that_is_not_known_is_not_used(monkeypatch, version):
    class Tensor:
        """One of another version of torch."""

    if version is not None:
        memory = np.full(reader._TABLE_WORDS, version, np.uint64)
        prototype = ctypes.PYFUNCTYPE(
            ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
        )
        new = prototype(("PyCapsule_New", ctypes.pythonapi))
        Tensor.__dlpack_c_exchange_api__ = new(memory.ctypes.data, reader._API_NAME, None)
    monkeypatch.setattr(reader, "Tensor", Tensor)
    assert reader._describe_of_torch() == 0


HOGWILD = """
import torch, torch.multiprocessing as mp
import rmsjit.torch

def work(p, optimizer):
    for _ in range(3):
        p.grad = torch.ones(4)
        optimizer.step()

if __name__ == "__main__":
    p = torch.nn.Parameter(torch.zeros(4))
    p.share_memory_()
    optimizer = rmsjit.torch.RMSprop([p], lr=0.1, alpha=0.0, num_threads=1)
    p.grad = torch.ones(4)
    optimizer.step()
    for state in optimizer.state.values():
        for value in state.values():
            value.share_memory_()
    for _ in range(2):
        process = mp.get_context("METHOD").Process(target=work, args=(p, optimizer))
        process.start()
        process.join()
        assert process.exitcode == 0
    print([round(x, 3) for x in p.tolist()], int(optimizer.state[p]["step"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_step_the_same_memory(method, tmp_path):
    script = tmp_path / "hogwild.py"
    script.write_text(HOGWILD.replace("METHOD", method))
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    assert run_python(code).strip() == "[-0.7, -0.7, -0.7, -0.7] 7"


# --- errors -----------------------------------------------------------------------------------

REFUSED = {
    "lr": ({"lr": -1.0}, ValueError, "lr must not be negative, got -1.0"),
    "lr tensor": ({"lr": torch.ones(2)}, ValueError, r"lr must have one element, got .*\(2,\)"),
    "alpha tensor": ({"alpha": torch.ones(2)}, ValueError, r"alpha must have one element, got"),
    "lr text": ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
    "alpha": ({"alpha": 1.5}, ValueError, "alpha must be between 0 and 1, got 1.5"),
    "momentum": ({"momentum": -0.1}, ValueError, "momentum must be between 0 and 1, got -0.1"),
    "eps": ({"eps": 0.0}, ValueError, "eps must be positive, got 0.0"),
    "decay": ({"weight_decay": -1}, ValueError, "weight_decay must not be negative, got -1"),
    "differentiable": ({"differentiable": True}, ValueError, "differentiable must be False"),
    "threads": ({"num_threads": 0}, ValueError, "num_threads must be at least 1, got 0"),
}


@pytest.mark.parametrize(("options", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_arguments_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        RMSprop(parameters(), **options)


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
def test_numbers_that_overflow_are_refused(name):
    (p,) = parameters(shapes=[(3,)])
    before, optimizer = p.detach().clone(), RMSprop([p], **{name: 1e39})
    with pytest.raises(ValueError, match=r"must be finite in the dtype .*1e\+39, which overflows"):
        optimizer.step()
    assert_same_parameters([p], [before])


PARAMETERS = {
    "meta": (torch.empty(2, device="meta"), ValueError, "on the CPU, got .* 'meta'"),
    "integer": (torch.zeros(2, dtype=torch.int64), TypeError, "dtypes .*, got torch.int64"),
    "float8": (torch.zeros(2).to(torch.float8_e5m2), TypeError, "got torch.float8_e5m2"),
    "negative": (torch.zeros(2, dtype=torch.complex64).conj().imag, TypeError, "negative view"),
    "sparse": (torch.zeros(2).to_sparse(), TypeError, "dense tensor, got .*torch.sparse_coo"),
}


@pytest.mark.parametrize(("tensor", "error", "message"), PARAMETERS.values(), ids=PARAMETERS)
def test_parameters_that_are_refused(tensor, error, message):
    (p,) = parameters(shapes=[(3,)])
    optimizer = RMSprop([p])
    with pytest.raises(error, match=f"parameter 1 of group 1 must .*{message}"):
        optimizer.add_param_group({"params": [torch.zeros(2), tensor]})
    assert len(optimizer.param_groups) == 1
    optimizer.step()


@in_both_ways
def test_a_parameter_that_has_got_another_dtype():
    params = parameters(shapes=[(3,), (2,)])
    optimizer = RMSprop([("a", params[0]), ("b", params[1])])
    optimizer.step()
    params[1].data = torch.zeros(2).to(torch.float8_e5m2)
    before = params[0].detach().clone()
    with pytest.raises(
        TypeError, match=r"parameter 1 \(b\) of group 0 must have one of the dtypes"
    ):
        optimizer.step()
    assert torch.equal(params[0], before)


def freed(tensor):
    """A tensor after its memory was freed, as programs do that gather parameters when needed."""
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def fake(tensor):
    with torch._subclasses.FakeTensorMode():
        return torch.ones(tensor.shape)


def wrapped(tensor):
    from torch.testing._internal.two_tensor import TwoTensor

    return TwoTensor(tensor, tensor)


WITHOUT_MEMORY = {
    "freed": freed,
    "fake": fake,
    "wrapped": wrapped,
    "functional": torch._to_functional_tensor,
}


@in_both_ways
@pytest.mark.parametrize("taken", [False, True], ids=["at first", "later"])
@pytest.mark.parametrize("change", WITHOUT_MEMORY.values(), ids=WITHOUT_MEMORY)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_gradients_without_memory_are_refused(change, taken):
    params = parameters(shapes=[(3,), (2,)])
    optimizer = RMSprop([("a", params[0]), ("b", params[1])])
    if taken:
        optimizer.step()
    params[1].grad = change(params[1].grad)
    before = [p.detach().clone() for p in params]
    with pytest.raises(
        TypeError,
        match=r"gradient of parameter 1 \(b\) of group 0 must be an ordinary dense .* memory",
    ):
        optimizer.step()
    assert_same_parameters(params, before)
    assert sum(int(state["step"]) for state in optimizer.state.values()) == (2 if taken else 0)


@in_both_ways
@pytest.mark.parametrize("change", WITHOUT_MEMORY.values(), ids=WITHOUT_MEMORY)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_state_without_memory_is_refused(change):
    params = parameters(shapes=[(3,)])
    optimizer = RMSprop(params)
    optimizer.step()
    for key, value in list(optimizer.state[params[0]].items()):
        optimizer.state[params[0]][key] = change(value)
        with pytest.raises(TypeError, match=f"the state '{key}' of parameter 0 .* with memory"):
            optimizer.step()
        optimizer.state[params[0]][key] = value


@in_both_ways
def test_a_parameter_whose_memory_was_freed_is_refused():
    params = parameters(shapes=[(3,), (2,)])
    optimizer = RMSprop(params)
    optimizer.step()
    params[1].data = freed(params[1].data)
    before = params[0].detach().clone()
    with pytest.raises(TypeError, match=r"parameter 1 of group 0 must be .* with memory"):
        optimizer.step()
    assert_same_parameters(params[:1], [before])


@in_both_ways
def test_a_gradient_of_the_shape_that_its_parameter_had_is_refused():
    (p,) = parameters(shapes=[(2, 3)])
    p.data = torch.ones(3, 2)
    with pytest.raises(RuntimeError, match="must match"):
        Theirs([p]).step()
    with pytest.raises(ValueError, match=r"must have its shape \(3, 2\), got \(2, 3\)"):
        RMSprop([p]).step()
    assert (p == 1).all()


SHAPES = {
    "one to many": ((1,), (3,)),
    "many to one": ((3,), (1,)),
    "another number": ((3,), (2,)),
    "none to one": ((), (1,)),
    "another axis": ((3,), (2, 3)),
}


@in_both_ways
@pytest.mark.parametrize(("old", "new"), SHAPES.values(), ids=SHAPES)
def test_state_of_another_shape_is_refused(old, new):
    """Where torch raises an error as well, after a part of the step."""
    for cls in CLASSES:
        (p,) = parameters(shapes=[old])
        optimizer = cls([("w", p)])
        optimizer.step()
        p.grad = None
        p.data, p.grad = torch.ones(new), torch.ones(new)
        error = RuntimeError if cls is Theirs else ValueError
        shapes = re.escape(f"shape {new}, got {old}")
        match = "shape|size" if cls is Theirs else f"'square_avg' of parameter 0 .w. .*{shapes}"
        with pytest.raises(error, match=match):
            optimizer.step()
    assert (p == 1).all()
    assert optimizer.state[p]["step"] == 1


STATES = {
    "complex": ("square_avg", torch.tensor([1 + 5j, 2 - 1j, 0]), TypeError, "must be real"),
    "complex momentum": ("momentum_buffer", torch.ones(3) * 1j, TypeError, "must be real"),
    "none": ("square_avg", None, TypeError, "must be a tensor, got None"),
    "array": ("square_avg", np.ones(3), TypeError, "must be a tensor, got array"),
    "sparse": ("square_avg", torch.ones(3).to_sparse(), TypeError, "must be an ordinary dense"),
    "meta": ("square_avg", torch.ones(3, device="meta"), TypeError, "must be an ordinary dense"),
    "integer count": ("step", 5, TypeError, "must be a tensor, got 5"),
    "counts": ("step", torch.ones(2), ValueError, "must have one element, got"),
    "complex count": ("step", torch.tensor(5j), TypeError, "must be a number, got 5j"),
    "flag": ("step", torch.tensor(True), TypeError, "must be a number, got True"),
}


@in_both_ways
@pytest.mark.parametrize(("key", "value", "error", "message"), STATES.values(), ids=STATES)
def test_state_that_is_not_for_its_parameter_is_refused(key, value, error, message):
    (p,) = parameters(shapes=[(3,)])
    optimizer = RMSprop([p], momentum=0.9)
    optimizer.step()
    before, held = p.detach().clone(), optimizer.state[p][key]
    optimizer.state[p][key] = value
    with pytest.raises(error, match=f"the state '{key}' of parameter 0 of group 0 {message}"):
        optimizer.step()
    assert_same_parameters([p], [before])
    optimizer.state[p][key] = held
    optimizer.step()
    assert optimizer.state[p]["step"] == 2


def test_real_state_of_a_complex_parameter_is_refused():
    for cls in CLASSES:
        (p,) = parameters(shapes=[(3,)], dtype=torch.complex64)
        optimizer = cls([p])
        optimizer.step()
        optimizer.state[p]["square_avg"] = torch.ones(3)
        with pytest.raises((RuntimeError, TypeError), match="complex"):
            optimizer.step()


def test_an_error_changes_nothing():
    """Not even in a group that comes before the one with the fault."""
    params = parameters(shapes=[(3,), (2,)])
    optimizer = RMSprop([{"params": params[:1]}, {"params": params[1:], "lr": 0.1}])
    optimizer.param_groups[1]["momentum"] = -1.0
    before = [p.detach().clone() for p in params]
    versions = [p._version for p in params]
    for _ in range(2):
        with pytest.raises(ValueError, match="momentum must be between"):
            optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert [p._version for p in params] == versions
    assert not optimizer.state
    optimizer.param_groups[1]["momentum"] = 0.1
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 1


def test_parameters_that_overlap_in_part():
    flat = torch.zeros(10)
    params = [torch.nn.Parameter(flat[:6]), torch.nn.Parameter(flat[4:])]
    for p in params:
        p.grad = torch.ones(6)
    with pytest.raises(ValueError, match=r"must not overlap in part, but variable 0 .* variable 1"):
        RMSprop(params).step()


def test_a_parameter_twice_in_a_group():
    """Of which torch warns that it will be an error."""
    (p,) = parameters(shapes=[(3,)])
    with (
        pytest.warns(UserWarning, match="duplicate parameters"),
        pytest.raises(ValueError, match="group 0 must have each parameter once"),
    ):
        RMSprop([p, p])


@pytest.mark.parametrize("fault", ["empty", "in two groups", "a tensor"])
def test_what_torch_refuses(fault):
    (p,) = parameters(shapes=[(3,)])
    given = {"empty": [], "in two groups": [{"params": [p]}, {"params": [p]}], "a tensor": p}
    for cls in (Theirs, RMSprop):
        with pytest.raises((ValueError, TypeError)):
            cls(given[fault])


def test_state_of_other_groups_is_refused():
    optimizer = RMSprop(parameters())
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(RMSprop(parameters()[:2]).state_dict())


def put(key, value):
    """A change of the state of the first parameter."""
    return lambda saved: saved["state"][0].update({key: value})


def set_in_group(name, value):
    return lambda saved: saved["param_groups"][0].update({name: value})


def of_another(cls):
    def change(saved):
        (p,) = parameters(shapes=[(3,)])
        other = cls([p])
        other.step()
        saved.update(other.state_dict())

    return change


SAVED = {
    "counts": (put("step", torch.ones(2)), ValueError, "'step' of .*must have one element, got"),
    "text": (put("step", "one"), TypeError, "'step' of .*must be a number, got 'one'"),
    "no count": (put("step", None), TypeError, "'step' of .*must be a number, got None"),
    "shape": (put("square_avg", torch.ones(2)), ValueError, r"'square_avg' of .*got \(2,\)"),
    "complex": (put("square_avg", torch.ones(3) * 1j), TypeError, "'square_avg' of .*be real"),
    "no tensor": (put("square_avg", None), TypeError, "'square_avg' of .*be a tensor, got None"),
    "no state": (lambda saved: saved["state"].update({0: 5}), TypeError, "must be a dict, got 5"),
    "no groups": (lambda saved: saved.pop("param_groups"), ValueError, "must have 'param_groups'"),
    "Adam": (of_another(torch.optim.Adam), ValueError, "settings of RMSprop, got .* alpha: lr, be"),
    "SGD": (of_another(torch.optim.SGD), ValueError, "settings of RMSprop, .* without alpha, eps"),
    "alpha": (set_in_group("alpha", 7.0), ValueError, "alpha must be between 0 and 1, got 7.0"),
    "lr": (set_in_group("lr", "fast"), TypeError, "lr must be a number, got 'fast'"),
    "differentiable": (
        set_in_group("differentiable", True),
        ValueError,
        "differentiable must be False",
    ),
}


@pytest.mark.filterwarnings("ignore:Casting complex")
@pytest.mark.parametrize(("change", "error", "message"), SAVED.values(), ids=SAVED)
def test_a_state_dict_is_refused_before_anything_is_changed(change, error, message):
    (p,) = parameters(shapes=[(3,)])
    optimizer, other = RMSprop([p], lr=0.5), RMSprop([p], lr=0.25)
    optimizer.step()
    other.step()
    saved = copy.deepcopy(optimizer.state_dict())
    change(saved)
    groups, held = copy.deepcopy(other.param_groups), dict(other.state[p])
    with pytest.raises(error, match=message):
        other.load_state_dict(saved)
    assert [{**g, "params": None} for g in other.param_groups] == [
        {**g, "params": None} for g in groups
    ]
    assert all(other.state[p][key] is value for key, value in held.items())
    assert not other._optimizer_load_state_dict_pre_hooks


def test_a_state_dict_is_checked_as_hooks_have_made_it():
    params = parameters(shapes=[(3,)])
    optimizer = RMSprop(params)
    optimizer.step()
    saved = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(lambda _, given: given["of a program"])
    optimizer.load_state_dict({"of a program": saved})
    assert optimizer.state[params[0]]["step"] == 1


def test_a_count_that_is_a_number_is_loaded():
    """As older versions of torch have saved it."""
    (p,) = parameters(shapes=[(3,)])
    optimizer = RMSprop([p])
    optimizer.step()
    saved = optimizer.state_dict()
    put("step", 5)(saved)
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert optimizer.state[p]["step"] == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_that_was_loaded_in_inference_mode_goes_on_with_the_other_class(dtype):
    (p,) = parameters(shapes=[(3,)])
    optimizer = RMSprop([p])
    optimizer.step()
    saved = optimizer.state_dict()
    put("square_avg", torch.ones(3, dtype=dtype))(saved)
    with torch.inference_mode():
        optimizer.load_state_dict(saved)
    other = Theirs([p])
    other.load_state_dict(optimizer.state_dict())
    other.step()
    assert other.state[p]["step"] == 2


def test_state_of_a_module_that_is_still_lazy():
    module = torch.nn.LazyLinear(2)
    first = torch.nn.Linear(3, 2)
    optimizer = RMSprop(first.parameters())
    first(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    other = RMSprop(module.parameters())
    other.load_state_dict(optimizer.state_dict())
    module(torch.ones(4, 3)).sum().backward()
    other.step()
    assert other.state[module.weight]["step"] == 2


# --- the class --------------------------------------------------------------------------------


def test_it_is_an_optimizer_of_torch():
    optimizer = RMSprop(parameters(), foreach=True, capturable=False)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert "Parameter Group 0" in repr(optimizer)
    optimizer.zero_grad()
    assert all(p.grad is None for p in optimizer.param_groups[0]["params"])
    optimizer.step()  # nothing to do
    assert not optimizer.state


def test_positions_of_arguments_are_torchs():
    import inspect

    ours, theirs = (list(inspect.signature(cls).parameters.values()) for cls in (RMSprop, Theirs))
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [
        (p.name, p.default) for p in theirs
    ]


def test_large_parameters_take_threads():
    theirs = parameters(shapes=[(1 << 20,), (1 << 20,)])
    ours = twins(theirs)
    for optimizer in (Theirs(theirs, momentum=0.9), RMSprop(ours, momentum=0.9)):
        for _ in range(4):
            optimizer.step()
    assert_same_parameters(ours, theirs)


def test_a_subclass_may_add_its_own():
    class Slower(RMSprop):
        def step(self, closure=None):
            for group in self.param_groups:
                group["lr"] *= 0.5
            return super().step(closure)

    (p,) = parameters(shapes=[(3,)])
    optimizer = Slower([p], lr=1.0)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert np.isfinite(p.detach().numpy()).all()
