"""The paper of two ways to take the image out of the prompt: no image, an unknown word."""

VDD = """@misc{zhang2024vdd,
  title  = {Debiasing Multimodal Large Language Models},
  author = {Zhang, Yi-Fan and Yu, Weichen and Wen, Qingsong and Wang, Xue and Zhang, Zhang and
            Wang, Liang and Jin, Rong and Tan, Tieniu},
  year   = {2024},
  eprint = {2403.05262}
}"""
