"""What the scripts in methods/ share below their dashed line: flags, tasks and seeds, ceiling, scores, rows.

    for problem in evaluate.problems(parser, argv):           a task at a seed that has no row yet
        for weak_probs in evaluate.supervisors(problem):      what each student learns from
            student, training = evaluate.start(problem, weak_probs)
            ...
        evaluate.report(problem, students)                    scores them, prints and saves the row
"""

import argparse
import hashlib
import json
import math
import os
import sys
import time
from itertools import islice, product
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
import torch.nn.functional as F

import data
import models
import store
import teachers
from methods import prototypes
from tasks import labelled

DEFAULT_SEEDS = [0, 1, 2, 3, 4]
EPOCHS = 20  # into which a student's steps are divided, however many samples there are
PROTOCOL = Path(__file__).parent / "results" / "protocol.jsonl"  # what protocol.py found
RATES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3]  # of which `--lr auto` chooses


class Problem(NamedTuple):
    """A task at a seed, as a method meets it."""

    task: data.Task  # supervised: features and weak labels
    args: argparse.Namespace  # the flags, where none is given those of the task's recipe
    identity: dict  # of its row
    compiled: bool  # whether losses are compiled
    begun: float = 0.0  # time.perf_counter() when it was handed out


def number(kind: type, low: float, high: float = 2**31 - 1, word: str | None = None):
    """An argparse type: a number of that kind in [low, high], or the word."""

    def parse(text):
        if text != word and not low <= kind(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return text if text == word else kind(text)

    parse.__name__ = kind.__name__  # argparse's own error names it
    return parse


def pick_device(name: str) -> str:
    """CUDA if there is any for "auto", else the CPU. Raises InputError on a device that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if name == "cuda" and "LOCAL_RANK" in os.environ:  # a GPU for each process, which rows do not name
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise data.InputError(f"no device {name!r} here ({str(error).splitlines()[0]})") from error
    return name


def flags(file: str, about: str, lr: float = 3e-5) -> argparse.ArgumentParser:
    """The flags of every script, whose file, docstring and usual rate are given."""
    parser = argparse.ArgumentParser(Path(file).name, description=about.splitlines()[0])
    parser.usage = argparse.SUPPRESS  # else an error would print it before its one line
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add, rate = parser.add_argument, number(float, 0, word="auto")
    several = number(int, 1, teachers.MANY, word="specialists")
    add("--task", nargs="+", default=data.EMBEDDED, help="see data.py")
    add("--seeds", nargs="+", type=number(int, 0), default=DEFAULT_SEEDS, help="a row per task and seed")
    add("--data-dir", help="folder of a real data set; digits, CIFAR-100 and HH-RLHF are else downloaded")
    add("--device", type=pick_device, default="auto", help="auto: CUDA if there is any, else cpu")
    add("--compile", choices=["auto", "on", "off"], default="auto", help="the loss; auto: with CUDA")
    add("--out", default="runs", help="folder of the rows, one METHOD.jsonl per method")
    add("--encoder-steps", type=number(int, 1), default=models.ENCODER_STEPS, help="to pretrain it")
    add("--protocol", action="store_true", help="rate and flag that protocol.py found for the kind of task")
    add("--text-encoder", help="Hugging Face name or folder, for text tasks")
    add("--image-encoder", help="for folder tasks, else resnet50: tasks/pictures.py says what it may name")
    add("--weak-encoder", help="for folder tasks: weak models are heads on this encoder's features")
    add("--weak-models", type=several, help="specialists by domain, or how many, of all kinds")
    add("--weak-temperatures", nargs="+", type=number(float, 1e-3), help="of each weak model: a control")
    # Else the task decides: data.HEAD, tasks/labelled.py, which has rates too.
    add("--steps", type=number(int, 1), help="of student and ceiling (linear heads: 1100), in 20 equal parts")
    add("--lr", type=rate, default=lr, help="of a linear head; auto: chosen without true labels")
    add("--ceiling-lr", type=number(float, 0), help="true labels bear more (linear heads: 1e-3)")
    add("--batch-size", type=number(int, 1), help="the papers' value for linear heads: 128")
    return parser


def run(main) -> None:
    """main(); where the user's input is at fault, one line on stderr and exit status 2."""
    (rank, world), begun = store.rank(), time.perf_counter()
    try:
        main()
        if world > 1:
            print(f"rank {rank} of {world}: {time.perf_counter() - begun:.1f} s", file=sys.stderr)
    except (data.InputError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)


def missing(parser, argv, resolve=data.resolve, heads=False):
    """(known task, args, identity) of each task and seed that has no row; rows that are there are printed.
    Under torchrun each process has its share of tasks and seeds.
    InputError where heads, or a flag, asks for a task of linear heads and it is not.

    The identity names only the flags that differ from the defaults and from the task's recipe."""
    args, method, (rank, world) = parser.parse_args(argv), Path(parser.prog).stem, store.rank()
    store.commit()  # now, as this is the code that runs
    known = [resolve(name) for name in args.task]  # a typing error is found before any work
    Path(args.out).mkdir(parents=True, exist_ok=True)  # as is a folder that cannot be made
    changed = args.lr == "auto" or args.protocol or args.weak_models or args.weak_temperatures
    for each in known:
        if (heads or changed) and each.recipe is not data.HEAD:
            asked = "this method" if heads else "--lr auto, --protocol, --weak-models or --weak-temperatures"
            raise data.InputError(f"{asked} is for linear heads on features, not for {each.name}")
        if (args.image_encoder or args.weak_encoder) and not data.folders(each.name):
            raise data.InputError(f"--image-encoder and --weak-encoder are for folder tasks, not {each.name}")
        if args.weak_models and each.name.endswith(".npz"):
            raise data.InputError(f"{each.name} has weak models of its own")
    elsewhere = ("task", "seeds", "data_dir", "out", "device")
    for each, seed in islice(product(known, args.seeds), rank, None, world):
        found = args.protocol and searched(method, each.kind, getattr(args, "supervision", None))
        usual = vars(parser.parse_args([])) | each.recipe | (found or {})
        own = vars(parser.parse_args(argv, argparse.Namespace(**usual))) | {"protocol": found}
        given = {key: own[key] for key in own if key not in elsewhere and own[key] != usual[key]}
        folder = args.data_dir if each.has_files else None
        identity = store.identity(method, each.name, seed, folder, args.device, given)
        if row := store.find_row(args.out, identity):
            print(json.dumps(row), flush=True)
        else:
            yield each, argparse.Namespace(**own, seed=seed), identity


def searches() -> list[dict]:
    """What protocol.py found."""
    return [json.loads(line) for line in PROTOCOL.read_text().splitlines()]


def searched(method: str, kind: str, supervision: str | None) -> dict:
    """The flags that protocol.py found for the method on tasks of that kind."""
    wanted = {"kind": kind, "method": method, "supervision": supervision}
    if found := [line["flags"] for line in searches() if wanted.items() <= line.items()]:
        return found[0]
    raise data.InputError(f"protocol.py has not searched for {method} on tasks of kind {kind}")


def compile_wanted(args) -> bool:
    return args.compile == "on" or (args.compile == "auto" and args.device.startswith("cuda"))


def problems(parser, argv=None, heads=False):
    """A Problem for each task and seed that has no row yet. heads: only of tasks of linear heads."""
    for known, args, identity in missing(parser, argv, heads=heads):
        chosen = ("text_encoder", "image_encoder", "weak_encoder", "weak_models")
        chosen = {key: getattr(args, key) for key in chosen}
        task = teachers.supervise(known, args.seed, args.data_dir, args.device, args.encoder_steps, **chosen)
        if args.weak_temperatures:
            task = teachers.sharpen(task, args.weak_temperatures)
        problem = Problem(task, args, identity, compile_wanted(args))
        if args.lr == "auto":
            args.lr = choose_lr(problem)
        yield problem._replace(begun=time.perf_counter())


def trained(problem: Problem, name: str, targets: torch.Tensor, lr: float) -> torch.nn.Module:
    """The seed's student after training on strong_train's x and these targets alone, (N,) or (N, C). Kept in
    the cache. name: for the progress bar."""
    task, args, identity, *_ = problem
    recipe = {key: getattr(args, key) for key in ("batch_size", "optimizer", "seed")}
    recipe |= {"epochs": EPOCHS, "length": math.ceil(args.steps / EPOCHS), "lr": lr}
    key = {key: identity[key] for key in ("task", "data", "device")}
    key |= {"steps": args.encoder_steps, "encoder": task.encoder, "recipe": recipe}
    key |= {"targets": hashlib.sha256(targets.cpu().numpy().tobytes()).hexdigest()}
    student = models.make_student(task, args.seed)

    def train():
        more = {"view": models.make_view(task), "progress": name}
        return models.fit(student, task.strong_train.x, targets, **recipe, **more).state_dict()

    student.load_state_dict(store.cached("student", train, **key))
    return student.eval()


def choose_lr(problem: Problem) -> float:
    """Of RATES the one whose student of the mean weak label agrees most with prototypes.label, which sees no
    true label either. The same for all methods."""
    x, _, weak_probs, _ = problem.task.strong_train
    wanted, targets = prototypes.label(x, weak_probs).argmax(-1), weak_probs.mean(1)

    def agreement(lr):
        student = trained(problem, "naive 0 of 1", targets, lr)
        return accuracy(models.predict(student, x), wanted)

    return max(RATES, key=agreement)


def supervisors(problem: Problem) -> list[torch.Tensor]:
    """What each of S students learns from, (N, C) each: every weak model's labels, their mean, or the class
    that most of them name; of several such classes the one with the largest mean."""
    weak_probs = problem.task.strong_train.weak_probs
    mean_label, num_classes = weak_probs.mean(1), weak_probs.shape[-1]
    if problem.args.supervision == "vote":
        votes = F.one_hot(weak_probs.argmax(-1), num_classes).sum(1)
        return [F.one_hot((votes + mean_label).argmax(-1), num_classes).to(mean_label)]
    return [mean_label] if problem.args.supervision == "mean" else list(weak_probs.unbind(1))


def start(problem: Problem, weak_probs: torch.Tensor) -> tuple[torch.nn.Module, dict]:
    """The seed's initial student, and what else training on weak_probs (N, C) or (N, M, C) takes."""
    task, args = problem.task, problem.args
    student = models.make_student(task, args.seed)
    x, _, _, labels = task.strong_train
    parts = [x, weak_probs] if labels is None else [x, weak_probs, labels]
    length = math.ceil(args.steps / EPOCHS)
    batches = models.Batches(parts, args.batch_size, args.seed, models.make_view(task), length)
    made = models.make_optimizer(args.optimizer, student, args.lr, EPOCHS * length, fused=True)
    return student, {"batches": batches, "epochs": EPOCHS, "optimizer": made[0], "schedule": made[1]}


def loss_of(problem: Problem, loss, argnums: tuple[int, ...] = (0,)):
    """`loss` as it is, or compiled where that is wanted."""
    return compiled(loss, argnums) if problem.compiled else loss


def compiled(loss, argnums: tuple[int, ...] = (0,)):
    """The scalar function `loss`, forward and backward pass in one compiled graph: nothing between logits and
    gradient is written to memory. Gradients reach the arguments in `argnums`. What is returned has to be the
    root of backward, or a summand of it: backward fails if it is scaled."""
    import torch._dynamo  # here, as it takes a second

    torch._dynamo.config.recompile_limit = 64  # of all losses, tasks and sizes of a batch; beyond, it fails
    # Recompute what lies between rather than store it, however often it is read (the usual limit is 4).
    options = {"realize_reads_threshold": 100}
    both = torch.func.grad_and_value(loss, argnums=argnums)
    kernels = torch.compile(both, fullgraph=True, options=options)

    class Compiled(torch.autograd.Function):
        @staticmethod
        def forward(context, *arguments):
            gradients, value = kernels(*arguments)
            context.save_for_backward(*gradients)
            context.count = len(arguments)
            return value

        @staticmethod
        def backward(context, of_value):
            torch._assert_async(of_value == 1, "a compiled loss cannot be scaled")
            found = dict(zip(argnums, context.saved_tensors))
            return tuple(found.get(i) for i in range(context.count))

    return Compiled.apply


def accuracy(scores: torch.Tensor, y: torch.Tensor) -> float:
    """scores (N, C), y (N,) -> share of correct argmaxes."""
    return (scores.argmax(-1) == y).double().mean().item()


def pgr(weak: float, student: float, ceiling: float, n: int) -> float | None:
    """Performance gap recovered, of accuracies on the same n samples (Burns et al. 2023). None where the gap
    to recover is not above two standard errors: dividing by it would amplify noise."""
    standard_error = math.sqrt((weak * (1 - weak) + ceiling * (1 - ceiling)) / n)
    return (student - weak) / (ceiling - weak) if ceiling - weak > 2 * standard_error else None


def report(problem: Problem, students: list, naive=False, **figures) -> None:
    """Scores S trained students, prints and saves the row. naive: compares with naive students of the same
    labels, rate and length; figures: the method's own. InputError where training diverged.

    The PGR compares the student of one weak model with that model, and the student of several with their mean
    accuracy (RAVEN, Eq. 18)."""
    seconds = time.perf_counter() - problem.begun
    task, args, (x, y, weak_probs, _) = problem.task, problem.args, problem.task.test
    scores = [models.predict(student, x) for student in students]
    if not all(each.isfinite().all() for each in scores):
        raise data.InputError("training diverged: lower the learning rates")
    ceiling = trained(problem, "ceiling", task.strong_train.y, args.ceiling_lr)
    best, own = accuracy(models.predict(ceiling, x), y), [accuracy(each, y) for each in scores]
    weak = [accuracy(each, y) for each in weak_probs.unbind(1)]
    bases = weak if len(own) == len(weak) else [mean(weak)] * len(own)
    recovered = [pgr(base, student, best, len(y)) for base, student in zip(bases, own)]
    votes = weak_probs.argmax(-1)
    same = (votes[:, :, None] == votes[:, None]).double().mean(0)  # (M, M), 1 on the diagonal
    row = {
        "kind": task.kind,
        "setting": task.setting and task.setting.name,
        "encoder": task.encoder,
        "weak_models": task.weak_models,
        "weak": weak,
        "weak_confidence": weak_probs.amax(-1).double().mean(0).tolist(),
        "weak_agreement": ((same.sum(0) - 1) / max(1, len(weak) - 1)).tolist(),  # with one of the others
        **({"students": own} if len(own) > 1 else {}),
        "lr": args.lr,
        "student": mean(own),
        "ceiling": best,
        "pgr": None if None in recovered else mean(recovered),
        "val": mean(accuracy(models.predict(student, task.val.x), task.val.y) for student in students),
        "n_test": len(y),
        **figures,
        "agreement_naive": None,
    }
    labels = task.strong_train.labels
    if naive and labels is None:
        named = ((f"naive {i} of {len(own)}", q) for i, q in enumerate(supervisors(problem)))
        said = [models.predict(trained(problem, *each, args.lr), x).argmax(-1) for each in named]
        row["agreement_naive"] = mean(map(accuracy, scores, said))
    if labels is not None and not labels.equal(task.strong_train.y):  # else that is the ceiling
        alone = trained(problem, "labels alone", labels, args.ceiling_lr)
        row["labels_alone"] = accuracy(models.predict(alone, x), y)
    if task.novel:
        networks = {"student": students[0], "ceiling": ceiling, "weak": models.load_teacher(task)}
        row["few_shot"] = {}
        for part, split in task.novel.items():  # of networks without their last layer
            features = {name: models.predict(net[:-1], split.x).cpu() for name, net in networks.items()}
            generator = torch.Generator().manual_seed(0)
            row["few_shot"][part] = labelled.few_shot(split.y.cpu(), features, generator)
    row["seconds"] = round(seconds, 2)  # of training the students
    print(json.dumps(store.save_row(args.out, problem.identity, row)), flush=True)
