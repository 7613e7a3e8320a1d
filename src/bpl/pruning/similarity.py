"""Feature channels similarity: which channels of a layer are redundant (FCS, Yang and Xiao 2022).

Channels are put into bins by the L1 norm of their feature maps (K-means), and compared within a bin by the cosine of
their maps. PAPERS section 4 has what the paper's abstract states; the order of removal below is ours.
"""

import torch
from torch import Tensor


def cosine_similarities(products: Tensor) -> Tensor:
    """Cosine of the angle between every two channels.

    Args:
        products: (N, N) inner products of the channels' maps.

    Returns:
        (N, N); 0 where one of the channels is 0 everywhere.
    """
    norms = products.diagonal().sqrt()
    return products / (norms[:, None] * norms).clamp_min(torch.finfo(products.dtype).tiny)


def norm_bins(norms: Tensor, bins: int, seed: int) -> Tensor:
    """Cluster channels by their norm: K-means in one dimension (scikit-learn's, best of ten k-means++ starts).

    Args:
        norms: (N,) L1 norms of the channels' maps.
        bins: number of clusters; fewer where there are fewer channels, or fewer different norms.
        seed: seed of the starts.

    Returns:
        (N,) int64, the number of each channel's bin.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ValueError(
            "K-means needs scikit-learn, which is not installed: pip install -e '.[fcs]' in the repository"
        ) from error
    # relative to the mean, to six digits: among numbers that differ by less, K-means finds fewer clusters than asked
    points = (norms / norms.mean().clamp_min(1e-30)).round(decimals=6)
    clusters = KMeans(min(bins, len(points.unique())), n_init=10, random_state=seed).fit(points[:, None].numpy())
    return torch.from_numpy(clusters.labels_).long()


def keep_dissimilar(norms: Tensor, cosines: Tensor, labels: Tensor, kept: int) -> Tensor:
    """Remove redundant channels until `kept` are left.

    Channels that are 0 everywhere go first. Then, again and again, of the two most similar channels that are left in
    one bin, the one of smaller norm goes. Where every bin is down to one channel and more must go, pairs across bins
    follow, in the same order.

    Args:
        norms: (N,) L1 norms of the channels' maps.
        cosines: (N, N) cosine similarities; negative ones are dissimilar.
        labels: (N,) bins.
        kept: how many channels stay, 1 to N.

    Returns:
        Bool tensor (N,), True = kept.
    """
    size, excess = norms.tolist(), len(norms) - kept
    first, second = torch.triu_indices(len(size), len(size), offset=1)  # every pair once
    across = labels[first] != labels[second]
    order = (cosines[first, second] - 3.0 * across).argsort(descending=True, stable=True)  # cosines span 2
    removed = set([channel for channel, norm in enumerate(size) if norm == 0][:excess])
    for i, j in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if len(removed) == excess:
            break
        if i not in removed and j not in removed:
            removed.add(i if size[i] < size[j] else j)
    mask = torch.ones(len(size), dtype=torch.bool)
    mask[list(removed)] = False
    return mask
