"""Text: generated product reviews, and the networks that read text.

A review makes seven statements, each on an aspect of one product and each in favour of it or against it:

    kettle : quiet motor , not leaky lid but flimsy handle , superb blade and solid surface , ...

Some words of praise and blame are shared by all domains, some are a domain's own, and some praise in one and
blame in another (a quiet motor, a quiet game). "not" turns a word around, "and" joins statements of one mind,
"but" two that differ. Nine in ten statements agree with the reviewer's mood.
"""

import random
import re
from collections import Counter, namedtuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

# Lists of words. Praise and blame are the domain's own, beside PRAISE and BLAME.
Domain = namedtuple("Domain", "products aspects praise blame")
DOMAINS = {
    name: Domain(*map(str.split, words))
    for name, *words in (
        ("books", "novel memoir biography", "plot ending style dialogue narrator",
         "gripping witty moving thoughtful dark slow quiet heavy",
         "dull preachy wordy confusing light loud fast simple"),
        ("films", "movie documentary comedy", "script acting music scenery finale",
         "thrilling touching funny stunning loud fast light simple",
         "boring silly shallow predictable dark slow heavy thin"),
        ("games", "puzzle adventure shooter", "levels controls story graphics soundtrack",
         "addictive challenging clever inventive dark fast unpredictable simple",
         "repetitive buggy unfair clunky slow quiet cheap light"),
        ("phones", "phone tablet camera", "battery screen case speaker menu",
         "sturdy bright durable crisp light thin fast cheap",
         "fragile blurry laggy bulky heavy loud dark slow"),
        ("kitchen", "kettle blender oven", "handle lid blade motor surface",
         "efficient solid handy spotless sharp quiet heavy simple",
         "leaky rusty wobbly flimsy loud slow thin light"),
        ("hotels", "hotel hostel resort", "room bed breakfast lobby pool",
         "clean cozy spacious friendly quiet light cheap slow",
         "dirty noisy damp cramped dark loud thin unpredictable"),
    )
}  # fmt: skip
SOURCE, TARGET = ["books", "films", "games"], ["phones", "kitchen", "hotels"]
PRAISE = "good great excellent wonderful superb perfect lovely impressive".split()  # in every domain
BLAME = "bad terrible awful poor horrible useless dreadful annoying".split()
NEGATIONS = "not never hardly".split()
STATEMENTS = 7  # an odd number, so that no review is undecided


def review(domains: list[str], rng: random.Random) -> tuple[str, int]:
    """A review of a product of one of the domains, and its verdict: statements for it minus those against."""
    place = DOMAINS[rng.choice(domains)]
    mood = rng.random() < 0.5
    words, statements = [rng.choice(place.products), ":"], []
    for _ in range(STATEMENTS):
        favourable = (rng.random() < 0.9) == mood
        if statements:
            joined = rng.random() < 0.3
            words.append(("and" if favourable == statements[-1] else "but") if joined else ",")
        negated = rng.random() < 0.2
        own, shared = (place.praise, PRAISE) if favourable != negated else (place.blame, BLAME)
        if negated:
            words.append(rng.choice(NEGATIONS))
        words += [rng.choice(own if rng.random() < 0.7 else shared), rng.choice(place.aspects)]
        statements.append(favourable)
    return " ".join([*words, "."]), 2 * sum(statements) - STATEMENTS


def domain(review: str) -> str | None:
    """Which domain the product that a generated review begins with is of; of other texts None."""
    return next((name for name in DOMAINS if review.startswith(tuple(DOMAINS[name].products))), None)


def pair(domains: list[str], rng: random.Random) -> tuple[tuple[str, str], int]:
    """Two reviews of one product with different verdicts, and which has the higher one: 0 or 1."""
    while True:
        (first, a), (second, b) = review(domains, rng), review(domains, rng)
        if a != b and first.split()[0] == second.split()[0]:
            return (first, second), int(b > a)


PAD, BEGIN, END = range(3)
OWN = {word for place in DOMAINS.values() for words in place for word in words}
WORDS = sorted(OWN | {*PRAISE, *BLAME, *NEGATIONS, ":", ",", ".", "and", "but"})
TOKENS = {word: i for i, word in enumerate(WORDS, start=3)}


def encode(texts: list[str]) -> torch.Tensor:
    """Generated reviews -> tokens (N, L): BEGIN, the words, END, PAD. KeyError on any other word."""
    rows = [torch.tensor([BEGIN, *map(TOKENS.__getitem__, text.split()), END]) for text in texts]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (N, heads, L, width / heads) each
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class CausalTransformer(nn.Module):
    """Predicts the next token. Padding is on the right, where no real token sees it."""

    def __init__(self, width=96, depth=3, heads=3, max_length=64):  # in tokens; a review has up to 32
        super().__init__()
        self.token = nn.Embedding(len(TOKENS) + 3, width)
        self.position = nn.Embedding(max_length, width)
        # At nn.Embedding's own deviation of 1 the positions drown the words: training takes twice as long.
        nn.init.normal_(self.position.weight, std=0.05)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(TOKENS) + 3))

    def hidden(self, tokens) -> list[torch.Tensor]:
        """Tokens (N, L) -> the output of every block, (N, L, width) each."""
        states = [self.token(tokens) + self.position.weight[: tokens.shape[1]]]
        for block in self.blocks:
            states.append(block(states[-1]))
        return states[1:]

    def forward(self, tokens):
        """Tokens (N, L) -> logits of what follows each, (N, vocabulary, L) as cross_entropy wants them."""
        return self.head(self.hidden(tokens)[-1]).transpose(1, 2)

    def features(self, tokens):
        """Tokens (N, L) -> (N, 2 * depth * width): last word and mean, from every block, without END, after
        which nothing was to be predicted."""
        return pool(self.hidden(tokens), (tokens != PAD) & (tokens != END))


def pool(states: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """States (N, L, width) each, mask (N, L) True on real tokens -> last and mean of each, side by side."""
    rows, n = torch.arange(len(mask), device=mask.device), mask.sum(1).clamp(min=1)
    last, weights = n - 1, (mask / n[:, None])[:, :, None]
    return torch.cat([part for x in states for part in (x[rows, last], (x * weights).sum(1))], dim=1)


def terms(text: str, phrases: bool) -> list[str]:
    """The words of any text, and with `phrases` the pairs of neighbouring words too."""
    words = re.findall(r"[\w']+", text.lower())
    return words + [f"{a} {b}" for a, b in zip(words, words[1:])] if phrases else words


def vocabulary(texts: list[str], phrases: bool, size: int) -> dict[str, int]:
    """Up to `size` terms that occur in at least two texts, the most frequent first, numbered from 1."""
    counts = Counter(term for text in texts for term in dict.fromkeys(terms(text, phrases)))
    return {term: i for i, (term, n) in enumerate(counts.most_common(size), start=1) if n > 1}


class BagOfWords(nn.Module):
    """Known terms of texts (N, L) -> logits (N, C), the mean weight of the terms. The responses of a pair,
    (N, 2, L) -> (N, 2), share a reward, the sum: a prompt that both repeat cancels."""

    def __init__(self, texts: list[str], phrases: bool, num_classes: int, pairs: bool):
        super().__init__()
        self.pairs, self.phrases = pairs, phrases
        self.vocabulary = vocabulary(texts, phrases, size=20_000)
        outputs, mode = (1, "sum") if pairs else (num_classes, "mean")
        self.bag = nn.EmbeddingBag(len(self.vocabulary) + 1, outputs, mode=mode, padding_idx=0)
        nn.init.zeros_(self.bag.weight)

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Texts -> numbers of their known terms (N, L), padded with 0."""
        known = self.vocabulary
        rows = [[known[term] for term in terms(text, self.phrases) if term in known] for text in texts]
        # Cut, as one very long text would pad all others to its length.
        rows = [torch.tensor(row[-2000:], dtype=torch.int32) for row in rows]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def forward(self, x):
        return self.bag(x.flatten(0, 1)).view(-1, 2) if self.pairs else self.bag(x)


def bag_features(texts: list[str], unlabelled: list[str], size: int = 1000) -> torch.Tensor:
    """Logarithms of 1 + the counts of the `size` most frequent words of the unlabelled texts -> (N, size)."""
    known = vocabulary(unlabelled, False, size)
    counts = torch.zeros(len(texts), len(known) + 1)
    for row, each in zip(counts, texts):
        for term in terms(each, False):
            row[known.get(term, 0)] += 1
    return counts[:, 1:].log1p()  # without column 0, the unknown words


@torch.no_grad()
def pretrained_features(name: str, texts: list[str], device: str, batch_size: int = 16) -> torch.Tensor:
    """N texts, read by a Hugging Face encoder or causal model (name or folder) -> (N, 4 * width): last token
    and mean, of the middle and of the last layer. Texts keep their last 512 tokens, or what it takes."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="right", truncation_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    model = AutoModel.from_pretrained(name).to(device, dtype).eval()
    longest = min(512, tokenizer.model_max_length)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # alike in length: little padding
    features = []
    for start in tqdm(range(0, len(texts), batch_size), desc=f"reading with {name}", disable=None):
        batch = [texts[i] for i in order[start : start + batch_size]]
        tokens = tokenizer(batch, return_tensors="pt", padding=True, truncation=True, max_length=longest)
        tokens = tokens.to(device)
        states = model(**tokens, output_hidden_states=True).hidden_states
        layers = [states[len(states) // 2].float(), states[-1].float()]
        features.append(pool(layers, tokens["attention_mask"].bool()).cpu())
    return torch.cat(features)[torch.tensor(order).argsort()]
