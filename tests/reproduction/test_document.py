from reproduction.document import Commands, Contents, Heading, Paragraph, Picture, Table, to_html, to_markdown


def blocks(tmp_path):
    picture = tmp_path / "fig-a.svg"
    drawing = '<svg width="3pt" height="4pt" viewBox="0 0 3 4"><path d="M0 0" stroke-width="2"/></svg>'
    picture.write_text(f'<?xml version="1.0"?>\n<!DOCTYPE svg>\n{drawing}\n')
    return [
        Heading("Title & more", 1),
        Contents(),
        Heading("Figure 1: it & that"),
        Paragraph("a < b"),
        Paragraph("Note this", strong=True),
        Table(["network", "error"], [["ResNet-20", "8.75"]]),
        Picture([picture], "A figure"),
        Commands("python train.py"),
    ]


def test_markdown(tmp_path):
    assert to_markdown(blocks(tmp_path)) == (
        "# Title & more\n\n- [Figure 1: it & that](#figure-1-it--that)\n\n## Figure 1: it & that\n\n"
        "a < b\n\n**Note this**\n\n"
        "| network | error |\n| --- | --- |\n| ResNet-20 | 8.75 |\n\n"
        "![fig a](fig-a.svg)\n\n*A figure*\n\n```sh\npython train.py\n```\n"
    )


def test_html_is_escaped_and_holds_its_pictures(tmp_path):
    page = to_html(blocks(tmp_path))
    assert "<title>Title &amp; more</title>" in page and '<h1 id="title--more">Title &amp; more</h1>' in page
    assert "a &lt; b" in page and "<th>network</th>" in page and "<td>8.75</td>" in page
    assert "http" not in page and "<pre><code><span>python</span> <span>train.py</span></code></pre>" in page


def test_html_has_a_contents_list_whose_links_lead_somewhere(tmp_path):
    page = to_html(blocks(tmp_path))
    assert '<a href="#figure-1-it--that">' in page and '<h2 id="figure-1-it--that">' in page


def test_pictures_are_inline_and_as_wide_as_their_place(tmp_path):
    page = to_html(blocks(tmp_path))
    assert '<svg viewBox="0 0 3 4" role="img"' in page and 'stroke-width="2"' in page
    assert "<?xml" not in page and page.count("<!DOCTYPE") + page.count("<!doctype") == 1


def test_long_commands_are_broken_between_their_words():
    command = " ".join(["python", "train.py", *(f"--config.key{i}=value" for i in range(9))])
    first, *rest = to_markdown([Commands(command)]).splitlines()[1:-1]
    assert rest and all(len(line) < 120 for line in (first, *rest)) and first.endswith(" \\")
    assert " ".join(line.strip(" \\") for line in (first, *rest)) == command
