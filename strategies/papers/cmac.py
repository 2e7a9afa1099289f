"""The paper behind IMD, CMPC and their ablations, and what its distortions share."""

from cdkit import SELECTORS, CellSelector

CODE = "lijm48/IMCCD, transformers/models/llama/modeling_llama.py, commit 9db52a0"
"""Its public code."""


def strong_cells() -> CellSelector:
    """The cells that the paper distorts.

    Found by its registered name, as a preset would name it, because a file of a distortion must not
    import a selector's: each of them can be deleted or replaced.
    """
    return SELECTORS["above_mean"]()


CMAC = """@misc{li2025imccd,
  title  = {Mitigating Hallucination for Large Vision Language Model by
            Inter-Modality Correlation Calibration Decoding},
  author = {Li, Jiaming and Zhang, Jiacheng and Jie, Zequn and Ma, Lin and Li, Guanbin},
  year   = {2025},
  eprint = {2501.01926},
  note   = {Its later version is CMAC, Cross-Modal Attention Calibration for LVLM
            Hallucination Mitigation, CVPR 2026}
}"""
