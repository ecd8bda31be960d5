"""Few-shot classification of turned and mirrored handwritten digits: real images that need no download."""

import torch

from bayesmeta.tasks.few_shot import FewShot, ImageClasses

TRAIN, TEST = (0, 1, 2, 5, 6, 8, 9), (3, 4, 7)


class Digits:
    """``digits-v1``: ``ways`` classes out of the poses of handwritten digits, grey images of 8 x 8 in [0, 1].

    The 1797 digits that scikit-learn brings along, 174 to 183 of each. Each of the four quarter turns of a digit and of
    its mirror image is a class, 8 per digit. ``train`` are the 56 classes of the digits 0, 1, 2, 5, 6, 8 and 9,
    ``test`` the 24 of 3, 4 and 7, which training never sees in any pose; ``ood`` are the test classes as negatives,
    ``1 - x``: dark ink on a bright ground.

    Some training classes nearly coincide: a half turn and a mirror image of 0, 1 and 8 look like the original, and a
    nearest neighbour among 160 images mistakes 7 to 24 % of them, against at most 7 % (the mirrored 3) within the other
    digits and 3 % between digits. A learner cannot reach 100 % on tasks where such two meet.

    Needs scikit-learn, ``pip install 'bayesmeta[images]'``; raises ImportError saying so. The images are a test set of
    Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI repository; this family of them is ours.
    """

    def __init__(self, *, ways: int = 5) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError(
                "Digits: expected scikit-learn, which has the images; install it with pip install 'bayesmeta[images]'"
            ) from error
        found = load_digits()
        images = torch.from_numpy(found.images).float().unsqueeze(1) / 16.0
        by_digit = [images[torch.from_numpy(found.target) == digit] for digit in range(10)]
        data = ImageClasses.of([*by_digit, *(1.0 - by_digit[digit] for digit in TEST)])
        splits = {"train": TRAIN, "test": TEST, "ood": range(10, 10 + len(TEST))}
        few_shot = FewShot(data, splits, ways=ways, name="digits-v1", rotations=True, mirrors=True)
        self.spec, self.sample, self.context = few_shot.spec, few_shot.sample, few_shot.context
