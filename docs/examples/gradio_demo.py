"""Several methods answer one question side by side, on a page: `python gradio_demo.py --help`."""

import argparse

import gradio as gr

import cdkit

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="micro", help="micro, a folder, or a name on the hub")
name = parser.parse_args().model
model, processor = cdkit.load_model(name, device="auto")


def answer(image, question, method):
    prompt = cdkit.adapter_for(model).prompt(question, images=1, processor=processor)
    inputs = processor(images=[image], text=[prompt], return_tensors="pt")
    inputs = inputs.to(model.device, model.dtype)
    try:
        with cdkit.attach(model, cdkit.load(method), processor=processor):
            out = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    except cdkit.CdkitError as error:  # such as a method that is defined for beams alone
        return f"refused: {error}"
    return processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def answers(image, question, methods):
    if image is None:
        raise gr.Error("Give an image first.")
    return [[method, answer(image, question, method)] for method in methods]


runnable = [each for each in cdkit.presets() if not cdkit.load(each).lacks]
asked = [
    gr.Image(cdkit.example_image(), type="pil", format="png", label="Image"),
    gr.Textbox("Please describe this image in detail.", label="Question"),
    gr.Dropdown(runnable, value=["plain", "vcd", "cmac"], multiselect=True, label="Methods"),
]
heads, widths = ["method", "answer"], ["25%", "75%"]
table = gr.Dataframe(headers=heads, column_widths=widths, wrap=True, label="Answers")
title = f"Contrastive decoding: {name}"
gr.Interface(answers, asked, table, title=title, flagging_mode="never").launch()
