"""The paper of two schedules, which it puts together: growth and a confidence gate."""

M3ID = """@inproceedings{favero2024m3id,
  title     = {Multi-Modal Hallucination Control by Visual Information Grounding},
  author    = {Favero, Alessandro and Zancato, Luca and Trager, Matthew and
               Choudhary, Siddharth and Perera, Pramuditha and Achille, Alessandro and
               Swaminathan, Ashwin and Soatto, Stefano},
  booktitle = {CVPR},
  year      = {2024}
}"""
