"""Pools of candidates for the largest pre-activations, and the sums that decide; `selection` fills the pools."""

import numpy as np
from numba import njit

_jit = njit(cache=True, nogil=True, error_model="numpy")
_sum = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
SPAN = 16  # products that are looked at together


@_sum
def dot(x, w):
    total = x.dtype.type(0)
    for i in range(len(x)):
        total += x[i] * w[i]
    return total


@_jit
def pre_activation(x, w, b, j):
    z = dot(x, w[j])
    return z + b[j] if len(b) else z


@_sum
def norm(x):
    """In float64; NaN where x is not finite."""
    total = 0.0
    finite = True
    for i in range(len(x)):
        total += np.float64(x[i]) * x[i]
        finite &= x[i] - x[i] == 0
    return np.sqrt(total) if finite else np.nan


@_jit
def largest_norm(w):
    most = 0.0
    for j in range(len(w)):
        size = norm(w[j])
        most = size if size > most else most
    return most


@_jit
def rounding(x, norm_w, b, eps, tiny, error):
    """error[r] ≥ |z − z'|, sums of one pre-activation in two orders; NaN: a row that is not finite."""
    most = 0.0
    for j in range(len(b)):
        most = max(most, abs(b[j]))
    for r in range(len(x)):
        error[r] = (x.shape[1] + 8) * (eps * (norm(x[r]) * norm_w + most) + tiny)


@_jit
def kth_largest(a, k):
    """Reorders a (n,) without NaN; the k-th largest, 1 ≤ k ≤ n."""
    low, high, k = 0, len(a), k - 1
    while True:
        first, middle, last = a[low], a[(low + high) // 2], a[high - 1]
        pivot = max(min(first, middle), min(max(first, middle), last))
        above, i, below = low, low, high  # a[low:above] > pivot, a[above:i] = pivot, a[below:high] < pivot
        while i < below:
            e = a[i]
            if e > pivot:
                a[i] = a[above]
                a[above] = e
                above += 1
                i += 1
            elif e < pivot:
                below -= 1
                a[i] = a[below]
                a[below] = e
            else:
                i += 1
        if k < above:
            high = above
        elif k < below:
            return pivot
        else:
            low = below


@_jit
def thin(score, row, latent, n, k, error, scratch):
    """Keeps of n ≥ k candidates those that may be among the k largest; how many, and the bound on the k-th."""
    for i in range(n):
        least = score[i] - error[row[i]]
        scratch[i] = least if least == least else -np.inf
    bound = kth_largest(scratch[:n], k)
    kept = 0
    for i in range(n):
        if not score[i] + error[row[i]] < bound:
            score[kept], row[kept], latent[kept] = score[i], row[i], latent[i]
            kept += 1
    return kept, bound


@_jit
def cut(score, row, latent, n, k, n_latents, scratch):
    """Keeps the k largest of n > k candidates, whose scores are exact; ties: lowest row, then latent."""
    for i in range(n):
        scratch[i] = score[i]
    bound = kth_largest(scratch[:n], k)
    ties = above = 0
    for i in range(n):
        above += score[i] > bound
        if score[i] == bound:
            scratch[ties] = -(np.float64(row[i]) * n_latents + latent[i])
            ties += 1
    place = kth_largest(scratch[:ties], k - above)
    kept = 0
    for i in range(n):
        if score[i] > bound or (score[i] == bound and -(np.float64(row[i]) * n_latents + latent[i]) >= place):
            score[kept], row[kept], latent[kept] = score[i], row[i], latent[i]
            kept += 1
    return kept


@_jit
def settle(x, w, b, magnitude, score, row, latent, n, k, scratch):
    """Exact scores (NaN: the least), and of more than k candidates the k largest; how many."""
    for i in range(n):
        z = pre_activation(x[row[i]], w, b, latent[i])
        score[i] = -np.inf if z != z else abs(z) if magnitude else z
    return cut(score, row, latent, n, k, len(w), scratch) if n > k else n


@_jit
def outside(z, lower, upper):
    """How many are not between the bounds, NaN among them."""
    n = np.int32(0)
    for j in range(len(z)):
        n += np.int32(not lower < z[j] < upper)
    return n


@_jit
def collect(z, top, latents, x, w, b, error, k, magnitude, bound, size, score, row, latent, scratch):
    """Candidates among the products z of rows from ``top`` on; row i of z goes to pool i, or to the only one."""
    capacity, infinite = score.shape[1], z.dtype.type(np.inf)
    for i in range(z.shape[0]):
        r, q = top + i, i if len(size) > 1 else 0
        if error[r] != error[r]:
            continue
        limit = z.dtype.type(bound[q] - error[r])
        lower = -limit if magnitude else -infinite
        for start in range(0, z.shape[1], SPAN):
            hits = outside(z[i, start : start + SPAN], lower, limit)
            if hits == 0:
                continue
            for j in range(start, min(start + SPAN, z.shape[1])):
                s = abs(z[i, j]) if magnitude else z[i, j]
                if s < limit:
                    continue
                n = size[q]
                score[q, n], row[q, n], latent[q, n] = s, r, latents[j]
                n += 1
                if n == capacity:
                    n, least = thin(score[q], row[q], latent[q], n, k, error, scratch)
                    if n > (capacity + k) // 2:
                        n = settle(x, w, b, magnitude, score[q], row[q], latent[q], n, k, scratch)
                        least = score[q, 0]
                        for c in range(1, n):
                            least = min(least, score[q, c])
                    bound[q] = max(bound[q], least)
                    limit = z.dtype.type(bound[q] - error[r])
                    lower = -limit if magnitude else -infinite
                size[q] = n


@_jit
def decide(x, w, b, error, k, magnitude, n, score, row, latent, scratch):
    """The k largest of a pool's n candidates, exactly; how many there are."""
    if n > k:
        n, _ = thin(score, row, latent, n, k, error, scratch)
    return settle(x, w, b, magnitude, score, row, latent, n, k, scratch)
