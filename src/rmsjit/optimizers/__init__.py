"""The two public optimizers, with the interfaces of tf-keras and of TensorFlow 1.

Each is made of mixins: classes with a part of the public interface (`groups`, `averages`,
`losses`, ...).  A mixin has no constructor, overrides nothing of another one, and uses the parts
that `core.Core` declares, or those of the mixins that it derives from.  What has a state of its
own is a part that the optimizer holds: `blocks.Blocks`, `accumulator.Accumulator`.
"""
