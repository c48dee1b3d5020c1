"""The table of forms: what every library computes, one row each.

To add a form, add a row; its function, its help, its line in ``docs/forms.md`` and its place on the
command line follow.  The settings are those of `rmsjit.Form`.
"""

from __future__ import annotations

import math

from rmsjit.forms.library import (
    ALWAYS,
    NEVER,
    WHEN_GIVEN,
    Argument,
    Choice,
    Library,
    Number,
    Setting,
    Switch,
    Unsupported,
    centered,
)

_ALL_FLOAT32 = ("learning_rate", "rho", "momentum", "epsilon")
_NO_DERIVATIVE = "steps of compiled code have no derivative"
_SCALE = "scale the loss or the gradients before"
_OWN_VARIABLES = "variables come with their gradients, in apply_gradients"

# How operations of PyTorch are rounded on a CPU, and its form, from which other libraries for it
# differ in a few settings.
_TORCH_ROUNDING = {"one_minus_rho": "exact", "quotient": "rate_first", "fused": True}
_TORCH = _TORCH_ROUNDING | {"learning_rate": "outside", "weight_decay": "coupled"}
_TORCH_NUMBERS = (
    Number("lr", 0.01, number="learning_rate"),
    Number("alpha", 0.99, number="rho"),
    Number("eps", 1e-8, number="epsilon"),
    Number("weight_decay", 0.0),
    Number("momentum", 0.0),
    centered(),
)

# Keras's arithmetic since 2.11.  A rate is a variable of float32 there, and TensorFlow makes a
# tensor of float32 of the weight decay before it casts it; on JAX, Keras does not.
_KERAS = {
    "epsilon": "inside",
    "weight_decay": "subtracted",
    "one_minus_rho": "exact",
    "square": "first",
    "quotient": "rate_first",
    "float32_numbers": ("learning_rate", "weight_decay"),
}
_KERAS_NUMBERS = (
    Number("learning_rate", 0.001),
    Number("rho", 0.9),
    Number("momentum", 0.0),
    Number("epsilon", 1e-7),
    centered(),
)
_KERAS_BASE = (
    Number("weight_decay", None),
    Number("clipnorm", None, off=(0.0,)),
    Number("clipvalue", None, off=(0.0, math.inf)),
    Number("global_clipnorm", None, off=(0.0,)),
)

LIBRARIES = (
    Library(
        "torch",
        "PyTorch, `torch.optim.RMSprop`",
        "torch 2.13, torch/optim/rmsprop.py, _single_tensor_rmsprop",
        (
            *_TORCH_NUMBERS,
            Argument("capturable", False),
            Argument("foreach", None),
            Switch("maximize", False),
            Unsupported("differentiable", False, instead=_NO_DERIVATIVE),
        ),
        _TORCH | {"mg_average": "difference"},
        note="Complex variables are trained as pairs of real numbers there: pass "
        "`z.view(z.real.dtype)`.",
    ),
    Library(
        "keras",
        "Keras 3, `keras.optimizers.RMSprop`",
        "keras 3.15, keras/src/optimizers/rmsprop.py, update_step",
        (
            *_KERAS_NUMBERS,
            *_KERAS_BASE,
            Number("use_ema", False),
            Number("ema_momentum", 0.99),
            Number("ema_overwrite_frequency", None, off=(0,)),
            Number("loss_scale_factor", None, number="loss_scale"),
            Number("gradient_accumulation_steps", None, off=(0,)),
            Number("name", None),
        ),
        _KERAS,
        apart={
            ("use_ema", "gradient_accumulation_steps"): "Keras moves averages at every call, "
            "rmsjit once in a step; rmsjit.RMSprop takes both, with the form of rmsjit.forms.keras",
            **dict.fromkeys(
                [
                    ("clipnorm", "clipvalue"),
                    ("clipnorm", "global_clipnorm"),
                    ("clipvalue", "global_clipnorm"),
                ],
                "Keras takes one of its three bounds",
            ),
        },
        note="Sparse gradients there change all rows, and duplicate indices are not summed.",
    ),
    Library(
        "tf_keras",
        "tf-keras since 2.11, `tf_keras.optimizers.RMSprop`",
        "tf_keras 2.21, tf_keras/src/optimizers/rmsprop.py, update_step",
        (
            *_KERAS_NUMBERS,
            *_KERAS_BASE,
            Unsupported("use_ema", False, instead="use the average of `keras`"),
            Argument("ema_momentum", 0.99),
            Argument("ema_overwrite_frequency", 100),
            Argument("jit_compile", True),
            Number("name", "RMSprop"),
        ),
        _KERAS,
        note="The reciprocal root there is approximate, to 2 or 3 units.",
    ),
    Library(
        "tf_keras_legacy",
        "tf-keras until 2.10, `tf_keras.optimizers.legacy.RMSprop`",
        "tf_keras 2.21, tf_keras/src/optimizers/legacy/rmsprop.py; TensorFlow's ApplyRMSProp",
        (
            *_KERAS_NUMBERS[:3],
            Number("epsilon", 1e-7, zero_is_default=True),
            *_KERAS_NUMBERS[4:],
            Number("name", "RMSprop"),
            Number("decay", 0.0, keyword_only=True),
            Number("clipnorm", None, keyword_only=True),
            Number("clipvalue", None, keyword_only=True, off=(math.inf,)),
            Number("global_clipnorm", None, keyword_only=True),
        ),
        {
            "square": "first",
            "quotient": "rate_first",
            "float32_numbers": ("learning_rate", "decay", "rho", "momentum"),
        },
        with_momentum={
            "epsilon": "inside",
            "rms_average": "difference",
            "mg_average": "difference",
        },
        note="Momentum moves epsilon inside the root. `rmsjit.RMSprop` is this form without the "
        "rounding of float32.",
    ),
    Library(
        "tf1",
        "TensorFlow 1, `tf.compat.v1.train.RMSPropOptimizer`",
        "tensorflow 2.21, core/kernels/training_ops.cc, ApplyRMSProp and ApplyCenteredRMSProp",
        (
            Number("learning_rate"),
            Number("decay", 0.9, number="rho"),
            Number("momentum", 0.0),
            Number("epsilon", 1e-10),
            Argument("use_locking", False),
            centered(),
            Number("name", "RMSProp"),
        ),
        {
            "slots": ("rms", "mg", "momentum"),
            "momentum": ALWAYS,
            "rms_start": 1.0,
            "epsilon": "inside",
            "rms_average": "difference",
            "mg_average": "difference",
            "quotient": "rate_first",
            "float32_numbers": _ALL_FLOAT32,
            "creation": "by_variable",
        },
        note="`rmsjit.train.RMSPropOptimizer` has the interface of TensorFlow 1; its arithmetic is "
        "this without the rounding of float32.",
    ),
    Library(
        "optax",
        "Optax, `optax.rmsprop`",
        "optax 0.2.8, optax/_src/transform.py, scale_by_rms, scale_by_stddev, trace",
        (
            Number("learning_rate"),
            Number("decay", 0.9, number="rho"),
            Number("eps", 1e-8, number="epsilon"),
            Setting("initial_scale", 0.0, setting="rms_start"),
            Choice(
                "eps_in_sqrt",
                True,
                settings={True: {"epsilon": "inside"}, False: {"epsilon": "outside"}},
            ),
            centered(),
            Number("momentum", None),
            Setting("nesterov", False),
            Setting("bias_correction", False),
        ),
        {
            "momentum": WHEN_GIVEN,
            "one_minus_rho": "exact",
            "square": "first",
            "quotient": "reciprocal",
            "complex_square": "modulus",
        },
        note="Weight decay is a transformation of its own there. The rounding is that of steps "
        "without `jax.jit`.",
    ),
    Library(
        "timm",
        "timm, `timm.optim.RMSpropTF`",
        "timm 1.0, timm/optim/rmsprop_tf.py, step",
        (
            Number("lr", 0.01, number="learning_rate"),
            Number("alpha", 0.9, number="rho"),
            Number("eps", 1e-10, number="epsilon"),
            Number("weight_decay", 0.0),
            Number("momentum", 0.0),
            centered(),
            Choice(
                "decoupled_decay",
                False,
                settings={
                    False: {"weight_decay": "coupled"},
                    True: {"weight_decay": "decoupled"},
                },
            ),
            Choice(
                "lr_in_momentum",
                True,
                settings={
                    True: {"learning_rate": "inside"},
                    False: {"learning_rate": "outside"},
                },
            ),
            Unsupported("caution", False, instead="cautious steps look at all elements at once"),
        ),
        _TORCH_ROUNDING
        | {
            "rms_start": 1.0,
            "epsilon": "inside",
            "rms_average": "difference",
            "mg_average": "difference",
        },
        note="PyTorch's with TensorFlow 1's numbers.",
    ),
    Library(
        "stable_baselines3",
        "Stable-Baselines3, `RMSpropTFLike`",
        "stable-baselines3 2, common/sb2_compat/rmsprop_tf_like.py, step",
        _TORCH_NUMBERS,
        _TORCH | {"rms_start": 1.0, "epsilon": "inside"},
        note="Like TensorFlow 1's, but for the learning rate, which stays outside of momentum.",
    ),
    Library(
        "pfrl",
        "PFRL, `RMSpropEpsInsideSqrt`",
        "pfrl 0.4, pfrl/optimizers/rmsprop_eps_inside_sqrt.py, step",
        _TORCH_NUMBERS,
        _TORCH | {"epsilon": "inside"},
    ),
    Library(
        "torchopt",
        "TorchOpt, `torchopt.rmsprop`",
        "torchopt 0.7, torchopt/transform/scale_by_rms.py, scale_by_stddev.py, trace.py",
        (
            *_TORCH_NUMBERS,
            Setting("initial_scale", 0.0, keyword_only=True, setting="rms_start"),
            Setting("nesterov", False, keyword_only=True),
            Switch("maximize", False, keyword_only=True),
        ),
        {
            "learning_rate": "outside",
            "weight_decay": "coupled",
            "one_minus_rho": "exact",
            "fused": True,
        },
    ),
    Library(
        "chainer",
        "Chainer, `chainer.optimizers.RMSprop`",
        "chainer 7.8, chainer/optimizers/rmsprop.py, update_core_cpu",
        (
            Number("lr", 0.01, number="learning_rate"),
            Number("alpha", 0.99, number="rho"),
            Number("eps", 1e-8, number="epsilon"),
            Choice(
                "eps_inside_sqrt",
                False,
                settings={False: {"epsilon": "outside"}, True: {"epsilon": "inside"}},
            ),
        ),
        {"one_minus_rho": "exact", "quotient": "rate_first"},
        note="Weight decay and clipping are hooks there.",
    ),
    Library(
        "chainer_graves",
        "Chainer, `chainer.optimizers.RMSpropGraves`",
        "chainer 7.8, chainer/optimizers/rmsprop_graves.py, update_core_cpu",
        (
            Number("lr", 1e-4, number="learning_rate"),
            Number("alpha", 0.95, number="rho"),
            Number("momentum", 0.9),
            Number("eps", 1e-4, number="epsilon"),
        ),
        {
            "momentum": ALWAYS,
            "centered": True,
            "epsilon": "inside",
            "one_minus_rho": "exact",
            "quotient": "rate_first",
        },
        note="The `delta` of Chainer is the negative of the slot `momentum`.",
    ),
    Library(
        "autograd",
        "autograd, `autograd.misc.optimizers.rmsprop`",
        "autograd 1.9, autograd/misc/optimizers.py, rmsprop",
        (
            Number("step_size", 0.1, number="learning_rate"),
            Number("gamma", 0.9, number="rho"),
            Number("eps", 1e-8, number="epsilon"),
        ),
        {
            "rms_start": 1.0,
            "square": "first",
            "quotient": "rate_first",
        },
        note="The average there is float64, which makes the parameters float64 too.",
    ),
    Library(
        "jax_example_libraries",
        "JAX, `rmsprop_momentum` of `jax.example_libraries.optimizers`",
        "jax 0.10, jax/example_libraries/optimizers.py, rmsprop_momentum",
        (
            Number("step_size", number="learning_rate"),
            Number("gamma", 0.9, number="rho"),
            Number("eps", 1e-8, number="epsilon"),
            Number("momentum", 0.9),
        ),
        {
            "epsilon": "inside",
            "one_minus_rho": "exact",
            "square": "first",
            "quotient": "rate_first",
        },
        note="With momentum 0 this is `rmsprop` of that module.",
    ),
    Library(
        "mxnet",
        "MXNet 2, `mxnet.optimizer.RMSProp`",
        "mxnet 2, src/operator/optimizer_op-inl.h, RMSPropUpdateKernel, RMSPropAlexUpdateKernel",
        (
            Number("learning_rate", 0.001),
            Number("rho", 0.9),
            Number("momentum", 0.9),
            Number("epsilon", 1e-8),
            centered(epsilon="inside", momentum=ALWAYS, quotient="rate_first", square="weighted"),
            Number("clip_weights", None),
            Argument("use_fused_step", True),
            Unsupported("rescale_grad", 1.0, keyword_only=True, instead=_SCALE),
            Number("clip_gradient", None, keyword_only=True, number="clipvalue"),
            Number("wd", 0.0, keyword_only=True, number="weight_decay"),
        ),
        {
            "momentum": NEVER,
            "weight_decay": "coupled",
            "square": "first",
            "float32_numbers": ("learning_rate", "rho", "momentum", "epsilon", "weight_decay"),
        },
        note="Momentum is used only if centered, which moves epsilon inside as well. `delta` there "
        "is the negative of the slot `momentum`.",
    ),
    Library(
        "paddle",
        "PaddlePaddle, `paddle.optimizer.RMSProp`",
        "paddle 3.3, paddle/phi/kernels/cpu/rmsprop_kernel.cc, RmsFunctor",
        (
            Number("learning_rate"),
            Number("rho", 0.95),
            Number("epsilon", 1e-6),
            Number("momentum", 0.0),
            centered(),
            Unsupported("parameters", None, instead=_OWN_VARIABLES),
            Number("weight_decay", None),
            Unsupported("grad_clip", None, instead="pass clipvalue, clipnorm or global_clipnorm"),
            Number("name", None),
        ),
        {
            "momentum": ALWAYS,
            "epsilon": "inside",
            "weight_decay": "coupled",
            "quotient": "rate_first",
            "float32_numbers": ("rho", "momentum", "epsilon"),
        },
        note="In float32 the root there is an approximate one.",
    ),
    Library(
        "mindspore",
        "MindSpore, `mindspore.nn.RMSProp`",
        "mindspore 2, python/mindspore/nn/optim/rmsprop.py; ApplyRMSProp",
        (
            Number("learning_rate", 0.1),
            Number("decay", 0.9, number="rho"),
            Number("momentum", 0.0),
            Number("epsilon", 1e-10),
            Argument("use_locking", False),
            centered(),
            Unsupported("loss_scale", 1.0, instead=_SCALE),
            Number("weight_decay", 0.0),
        ),
        {
            "momentum": ALWAYS,
            "rms_start": 1.0,
            "epsilon": "inside",
            "weight_decay": "coupled",
            "quotient": "rate_first",
            "float32_numbers": _ALL_FLOAT32,
        },
    ),
    Library(
        "mlx",
        "MLX, `mlx.optimizers.RMSprop`",
        "mlx 0.2x, python/mlx/optimizers/optimizers.py, RMSprop.apply_single",
        (
            Number("learning_rate"),
            Number("alpha", 0.99, number="rho"),
            Number("eps", 1e-8, number="epsilon"),
        ),
        {
            "one_minus_rho": "exact",
            "square": "first",
            "quotient": "rate_first",
        },
    ),
    Library(
        "optimisers_jl",
        "Optimisers.jl (Flux), `RMSProp`",
        "Optimisers.jl 0.4, src/rules.jl, apply!(::RMSProp)",
        (
            Number("eta", 0.001, number="learning_rate"),
            Number("rho", 0.9),
            Number("epsilon", 1e-8),
            Choice(
                "centred",
                False,
                keyword_only=True,
                settings={False: {}, True: {"centered": True}},
            ),
        ),
        {
            "square": "first",
            "quotient": "rate_first",
            "complex_square": "modulus",
        },
        note="The slot `rms` is called `quad` there, and `mg` `lin`.",
    ),
    Library(
        "burn",
        "Burn, `RmsPropConfig`",
        "burn 0.1x, optim/rmsprop.rs, SimpleOptimizer::step",
        (
            Number("lr", number="learning_rate"),
            Number("alpha", 0.99, number="rho"),
            Number("momentum", 0.9),
            Number("epsilon", 1e-5),
            centered(),
            Number("weight_decay", None),
            Unsupported("grad_clipping", None, instead="pass clipvalue or clipnorm"),
        ),
        {
            "learning_rate": "outside",
            "weight_decay": "coupled",
            "square": "first",
            "float32_numbers": ("rho", "momentum", "epsilon", "weight_decay"),
        },
        note="`lr` is an argument of each step there.",
    ),
    Library(
        "dl4j",
        "Deeplearning4j, `org.nd4j.linalg.learning.config.RmsProp`",
        "nd4j 1.0, RmsPropUpdater.applyUpdater",
        (
            Number("learningRate", 0.1, number="learning_rate"),
            Number("rmsDecay", 0.95, number="rho"),
            Number("epsilon", 1e-8),
        ),
        {
            "rms_start": "epsilon",
            "one_minus_rho": "exact",
            "square": "first",
            "quotient": "rate_first",
        },
    ),
    Library(
        "caffe",
        "Caffe, solver type `RMSProp`",
        "caffe 1.0, src/caffe/solvers/rmsprop_solver.cpp, ComputeUpdateValue",
        (
            Number("base_lr", number="learning_rate"),
            Number("rms_decay", 0.99, number="rho"),
            Number("delta", 1e-8, number="epsilon"),
            Number("weight_decay", 0.0),
            Unsupported("regularization_type", "L2", instead="add the sign yourself for L1"),
            Number("clip_gradients", -1, number="global_clipnorm", off=(-1.0,)),
            Unsupported("iter_size", 1, instead="add gradients up before"),
        ),
        {
            "weight_decay": "coupled",
            "square": "first",
            "float32_numbers": ("learning_rate", "rho", "epsilon", "weight_decay"),
        },
        note="The arguments are fields of the solver's description.",
    ),
    Library(
        "torch7",
        "Torch 7, `optim.rmsprop`",
        "torch/optim, rmsprop.lua",
        (
            Number("learningRate", 0.01, number="learning_rate"),
            Number("alpha", 0.99, number="rho"),
            Number("epsilon", 1e-8),
            Setting("initialMean", 0.0, setting="rms_start"),
            Number("weightDecay", 0.0, number="weight_decay"),
        ),
        {
            "weight_decay": "coupled",
            "one_minus_rho": "exact",
            "quotient": "rate_first",
        },
        note="The arguments are fields of `config`.",
    ),
    Library(
        "lasagne",
        "Lasagne, `lasagne.updates.rmsprop`",
        "lasagne 0.2, lasagne/updates.py, rmsprop",
        (
            Number("learning_rate", 1.0),
            Number("rho", 0.9),
            Number("epsilon", 1e-6),
        ),
        {
            "epsilon": "inside",
            "square": "first",
            "quotient": "rate_first",
        },
    ),
    Library(
        "ensmallen",
        "ensmallen (mlpack), `ens::RMSProp`",
        "ensmallen 2, include/ensmallen_bits/rmsprop/rmsprop_update.hpp, Update",
        (
            Number("stepSize", 0.01, number="learning_rate"),
            Argument("batchSize", 32),
            Number("alpha", 0.99, number="rho"),
            Number("epsilon", 1e-8),
            Argument("maxIterations", 100000),
            Argument("tolerance", 1e-5),
            Argument("shuffle", True),
            Argument("resetPolicy", True),
        ),
        {
            "one_minus_rho": "exact",
            "square": "first",
            "quotient": "rate_first",
        },
    ),
    Library(
        "river",
        "River, `river.optim.RMSProp`",
        "river 0.2x, river/optim/rms_prop.py, _step_with_vector",
        (
            Number("lr", 0.1, number="learning_rate"),
            Number("rho", 0.9),
            Number("eps", 1e-8, number="epsilon"),
        ),
        {
            "epsilon": "inside",
            "one_minus_rho": "exact",
            "square": "first",
            "quotient": "rate_over",
        },
    ),
    Library(
        "flashlight",
        "flashlight, `fl::RMSPropOptimizer`",
        "flashlight 0.4, flashlight/fl/optim/RMSPropOptimizer.cpp, step",
        (
            Number("learningRate", number="learning_rate"),
            Number("rho", 0.99),
            Number("epsilon", 1e-8),
            Number("weightDecay", 0.0, number="weight_decay"),
            centered("use_first"),
        ),
        {
            "weight_decay": "independent",
            "quotient": "rate_first",
            "float32_numbers": ("learning_rate", "rho", "epsilon", "weight_decay"),
        },
        note="Weight decay is not multiplied by the learning rate.",
    ),
    Library(
        "dynet",
        "DyNet, `RMSPropTrainer`",
        "dynet 2.1, dynet/training.cc, RMSPropTrainer::update_rule_dev",
        (
            Number("learning_rate", 0.1),
            Number("eps", 1e-20, number="epsilon"),
            Number("rho", 0.95),
        ),
        {
            "epsilon": "inside",
            "square": "first",
            "float32_numbers": ("learning_rate", "rho", "epsilon"),
        },
        note="A trainer there clips by a norm of 5 unless told otherwise: `global_clipnorm=5`.",
    ),
    Library(
        "bitsandbytes",
        "bitsandbytes, `bitsandbytes.optim.RMSprop`",
        "bitsandbytes 0.4x, csrc/kernels.cu, kOptimizer32bit1State",
        (
            Number("lr", 0.01, number="learning_rate"),
            Number("alpha", 0.99, number="rho"),
            Number("eps", 1e-8, number="epsilon"),
            Number("weight_decay", 0.0),
            Argument("momentum", 0.0),
            Unsupported("centered", False, instead="it is an error there as well"),
            Unsupported("optim_bits", 32, instead="slots have the dtype of the variable"),
            Argument("args", None),
            Argument("min_8bit_size", 4096),
            Unsupported("percentile_clipping", 100, instead="pass clipnorm"),
            Argument("block_wise", True),
        ),
        {
            "weight_decay": "coupled",
            "float32_numbers": ("learning_rate", "rho", "epsilon", "weight_decay"),
        },
        note="Momentum is accepted and never used, there as here.",
    ),
)

BY_NAME = {library.name: library for library in LIBRARIES}
