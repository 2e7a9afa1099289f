"""The paper behind several files of this folder: IMD, CMPC and their ablations."""

CODE = "lijm48/IMCCD, transformers/models/llama/modeling_llama.py, commit 9db52a0"
"""Its public code."""

CMAC = """@misc{li2025imccd,
  title  = {Mitigating Hallucination for Large Vision Language Model by
            Inter-Modality Correlation Calibration Decoding},
  author = {Li, Jiaming and Zhang, Jiacheng and Jie, Zequn and Ma, Lin and Li, Guanbin},
  year   = {2025},
  eprint = {2501.01926},
  note   = {Its later version is CMAC, Cross-Modal Attention Calibration for LVLM
            Hallucination Mitigation, CVPR 2026}
}"""
