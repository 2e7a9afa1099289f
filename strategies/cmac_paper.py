"""The paper behind several files of this folder: IMD, CMPC and their ablations."""

CMAC = """@misc{li2025imccd,
  title  = {Mitigating Hallucination for Large Vision Language Model by
            Inter-Modality Correlation Calibration Decoding},
  author = {Li, Jiaming and Zhang, Jiacheng and Jie, Zequn and Ma, Lin and Li, Guanbin},
  year   = {2025},
  eprint = {2501.01926},
  note   = {Its later version is CMAC, Cross-Modal Attention Calibration for LVLM
            Hallucination Mitigation, CVPR 2026}
}"""
