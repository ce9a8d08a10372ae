"""What makes a student's step fast: gradients in closed form, torch.compile, and on a GPU one launch a step.

Every loss here is a cross-entropy whose target t is fixed with respect to the student's logits z, or a sum of
two. So nothing has to be differentiated step by step:

    L = mean_i -sum_c t_ic log p_ic,    p = softmax(z)         dL/dz_ic = (sum_c' t_ic' p_ic - t_ic) / N

Each method file has a function value_and_gradient of the kind, next to the plain loss that says what it
computes. Its loop passes the gradient on: student_logits.backward(gradient).
"""

import functools
import sys
from collections import Counter

import torch

# What lies between logits and gradient is computed again where it is read, not written to memory. (The usual
# limit is 4 reads; the mean of M weak models takes 2 M.)
ONE_PASS = {"realize_reads_threshold": 100}
WARM_UP = 3  # steps before a CUDA graph is captured: until then kernels are chosen and memory is allocated


def closed_form(function):
    """For function(student_logits, ...) -> value, gradient, ...: no autograd; half types are promoted to
    float32, and the gradient comes in the type of the logits, as their backward pass takes it."""

    def promote(value):
        half = torch.is_tensor(value) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value

    @functools.wraps(function)
    @torch.no_grad()
    def call(student_logits, *arguments, **options):
        options = {name: promote(value) for name, value in options.items()}
        value, gradient, *more = function(promote(student_logits), *map(promote, arguments), **options)
        return value, gradient.to(student_logits.dtype), *more

    return call


def one_hot(classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(...) -> bool (..., C). F.one_hot would write 8 bytes where this writes 1, or none if compiled."""
    return classes[..., None] == torch.arange(num_classes, device=classes.device)


def cross_entropy(
    log_p: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """L above, summed over S students, in nats; and its gradient with respect to their logits.

    log_p, targets (N, S, C); labels (N,), or (N, C) where a task mixes samples, or None: their cross-entropy
    is added -> scalar, (N, S, C). Rows of targets may have any sum.
    """
    if labels is not None:
        given = one_hot(labels, log_p.shape[-1]) if labels.dim() == 1 else labels
        targets = targets + given[:, None]
    value = -(targets * log_p).sum() / len(log_p)
    return value, (targets.sum(-1, keepdim=True) * log_p.exp() - targets) / len(log_p)


def wanted(choice: str, device: str) -> bool:
    """What --compile auto, on or off means on that device."""
    return choice == "on" or (choice == "auto" and device.startswith("cuda"))


def fall_back(what: str, error: Exception) -> None:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    print(f"{what} does not work here, so it runs without: {reason}", file=sys.stderr)


def compiled(function, on: bool):
    """torch.compile(function), if `on`. Where that fails (no C++ compiler, no Triton, too old a GPU), a line
    says so, and function is called as it is."""
    if not on:
        return function
    kernels = None

    @functools.wraps(function)
    def call(*arguments, **options):
        nonlocal kernels
        try:
            if kernels is None:
                import torch._dynamo  # here, as it takes a second

                torch._dynamo.config.recompile_limit = 64  # of all methods, tasks and sizes of a batch
                kernels = torch.compile(function, options=ONE_PASS)
            if kernels is not function:
                return kernels(*arguments, **options)
        except Exception as error:  # of many kinds
            kernels = function
            fall_back("torch.compile", error)
        return function(*arguments, **options)

    return call


def capturable(compiled: bool, x: torch.Tensor) -> bool:
    """Whether a loop over the samples x uses CUDA graphs."""
    return compiled and x.is_cuda


def warm_up(step, arguments, stream) -> None:
    """step(*arguments) beside the usual stream, as CUDA graphs want it before they are captured."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(*arguments)
    torch.cuda.current_stream().wait_stream(stream)


def capture(step, arguments, stream, pool):
    """A function that does what step(*arguments) does, with what the arguments then hold, in one launch."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):  # records the kernels and runs none
        step(*arguments)
    return graph.replay


def captured(step, on: bool):
    """step, as one launch (a CUDA graph) instead of a dozen, if `on`: the step of a small student takes a GPU
    less time than the host needs to launch its kernels.

    step(*arguments): tensors and, of few values, others. A graph holds the kernels of one step with the
    numbers that Python gave them: what changes from step to step has to be in tensors, either arguments or
    written in place. For each shape of the arguments a graph is captured after WARM_UP ordinary steps.
    """
    if not on:
        return step
    # One pool of memory for all graphs, as no two of them run at a time.
    stream, pool, calls, graphs = torch.cuda.Stream(), torch.cuda.graph_pool_handle(), Counter(), {}

    def call(*arguments):
        key = tuple(each.shape if torch.is_tensor(each) else each for each in arguments)
        calls[key] += 1
        if calls[key] <= WARM_UP:
            return warm_up(step, arguments, stream)
        if calls[key] == WARM_UP + 1:
            places = [each.clone() if torch.is_tensor(each) else each for each in arguments]
            try:
                graphs[key] = capture(step, places, stream, pool), places
            except Exception as error:  # nothing has run: the step is still to be made
                fall_back("a CUDA graph", error)
        if key not in graphs:
            return step(*arguments)
        replay, places = graphs[key]
        for place, each in zip(places, arguments):
            if torch.is_tensor(each):
                place.copy_(each)
        replay()

    return call
