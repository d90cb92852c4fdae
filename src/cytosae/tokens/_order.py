"""The order in which training reads tokens: a pure function of (seed, epoch, step)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class TokenOrder:
    """Shuffled batches without replacement, one permutation an epoch; an epoch's remainder is left out.

    Parameters
    ----------
    n
        Number of tokens.
    batch
        Tokens a step; smaller than `n`.
    seed
        With the epoch, the key of a counter-based generator (Philox): nothing has to be stored to resume.
    """

    def __init__(self, n: int, batch: int, seed: int) -> None:
        self.n, self.batch, self.seed = n, min(batch, n), seed
        self.steps_per_epoch = max(1, n // self.batch)
        self._epoch = -1
        self._permutation: npt.NDArray[np.int64] = np.empty(0, np.int64)

    def at(self, step: int) -> npt.NDArray[np.int64]:
        """int64 [batch]: the tokens of a step (counted from 0 over all epochs)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self._permutation, self._epoch = generator.permutation(self.n), epoch
        return self._permutation[position * self.batch : (position + 1) * self.batch]
