import base64

from resnet_jax.reproduction.document import Commands, Heading, Paragraph, Picture, Table, to_html, to_markdown


def blocks(tmp_path):
    picture = tmp_path / "fig.png"
    picture.write_bytes(b"pixels")
    return [
        Heading("Title & more", 1),
        Paragraph("a < b"),
        Paragraph("Mind this", strong=True),
        Table(["network", "error"], [["ResNet-20", "8.75"]]),
        Picture(picture, "A figure"),
        Commands("python train.py"),
    ]


def test_markdown(tmp_path):
    assert to_markdown(blocks(tmp_path)) == (
        "# Title & more\n\na < b\n\n**Mind this**\n\n"
        "| network | error |\n| --- | --- |\n| ResNet-20 | 8.75 |\n\n"
        "![A figure](fig.png)\n\n*A figure*\n\n```sh\npython train.py\n```\n"
    )


def test_html_is_escaped_and_holds_its_pictures(tmp_path):
    page = to_html(blocks(tmp_path))
    assert "<title>Title &amp; more</title>" in page and "<h1>Title &amp; more</h1>" in page
    assert "a &lt; b" in page and "<th>network</th>" in page and "<td>8.75</td>" in page
    assert f'src="data:image/png;base64,{base64.b64encode(b"pixels").decode()}"' in page
    assert "http" not in page and "<pre>python train.py</pre>" in page
