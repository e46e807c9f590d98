"""The page in a real browser, against the real server."""

import base64
import io
import json
import os
import shutil

import httpx
import pytest

from tests.proxy import proxied
from tests.servers import SMALL, running
from tests.test_server import SETTINGS, expected, picture

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def roomy(tiny_directory, env):
    """For long answers."""
    with running(tiny_directory(), env, *SMALL, "serve.context=1024") as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no chromium; apt-get install chromium")
    unconfined = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=unconfined)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """`visit(url)`: the page, which must ask no other host and say no error."""
    contexts = []

    def open_page(url: str, **options):
        context = browser.new_context(**options)
        page = context.new_page()
        asked, errors = [], []

        def note(message):
            if "Content Security Policy" in message.text:
                errors.append(message.text)

        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", note)
        contexts.append((url, context, asked, errors))
        page.goto(url)
        page.get_by_role("button", name="Example: panda climbing").wait_for()
        return page

    yield open_page
    for url, context, asked, errors in contexts:
        context.close()
        assert not [other for other in asked if not other.startswith((url, "data:"))]
        assert not errors


def png(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def choose(page, image) -> None:
    content = {"name": "mine.png", "mimeType": "image/png", "buffer": png(image)}
    page.get_by_label("Choose a picture").set_input_files(content)
    page.get_by_alt_text("Your picture: mine.png").wait_for()


def settings(page, tokens: int) -> None:
    page.get_by_text("Settings").click()
    for label, value in (
        ("Temperature", SETTINGS["temperature"]),
        ("Seed", SETTINGS["seed"]),
        ("Most", tokens),
    ):
        page.get_by_label(label).fill(str(value))


def ask(page, question: str) -> None:
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask").click()


def shown(page) -> tuple[str, dict[str, str]]:
    """The newest answer's text and figures, when it is whole."""
    answer = page.locator("article").first
    answer.locator(".answer[aria-busy=false]").wait_for()
    figures = answer.locator("[data-figure]").evaluate_all(
        "all => Object.fromEntries(all.map(one => [one.dataset.figure, one.textContent]))"
    )
    return answer.locator(".answer").evaluate("one => one.textContent"), figures


def make_long(page) -> None:
    """What is asked from here on takes a second or more: no end token is drawn."""

    def lengthen(route):
        body = json.loads(route.request.post_data or "{}")
        body |= {"logit_bias": {"507": -100, "505": -100}}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/stream", lengthen)


def test_the_page_is_one_file_that_may_run_nothing_else(server):
    page = httpx.get(server.url)
    policy = page.headers["content-security-policy"]
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "://" not in page.text.replace("http://www.w3.org/2000/svg", "")
    names = httpx.get(f"{server.url}/examples").json()["data"]
    assert len(names) == 5
    for name in names:
        assert httpx.get(f"{server.url}/examples/{name}").headers["content-type"] == "image/png"
    for name in ("../README.md", "%2e%2e/README.md", "..%2f..%2fREADME.md", "/etc/passwd", "none.png"):
        assert httpx.get(f"{server.url}/examples/{name}").status_code == 404


@pytest.mark.browser
def test_the_page_shows_what_sample_gives_tints_it_and_asks_again(tiny, roomy, visit):
    page = visit(roomy.url)
    choose(page, picture())
    settings(page, 40)
    _, result = expected(tiny(), "What's this?", picture(), max_new_tokens=40, **SETTINGS)
    ask(page, "What's this?")
    text, figures = shown(page)
    assert text == result.texts[0]
    assert (figures["finish"], figures["tokens"]) == (result.finish_reasons[0], str(result.lengths[0]))
    assert figures["first"].endswith(" s")
    assert figures["speed"].endswith(" tokens/s")
    assert page.get_by_role("status").inner_text() == "Done."

    backgrounds = "all => [...new Set(all.map(one => getComputedStyle(one).backgroundColor))]"
    tokens = page.locator(".answer span")
    assert len(tokens.evaluate_all(backgrounds)) == 1
    page.get_by_label("Tint tokens").check()
    assert len(tokens.evaluate_all(backgrounds)) > 5
    told = [float(t.split()[1].rstrip(",")) for t in tokens.evaluate_all("all => all.map(one => one.title)")]
    assert told == pytest.approx(result.logprobs[0].tolist(), abs=0.01)

    page.get_by_role("button", name="Remove").click()
    _, again = expected(tiny(), "And this?", max_new_tokens=40, **SETTINGS)
    ask(page, "And this?")
    assert shown(page)[0] == again.texts[0]
    assert page.locator("article").count() == 2


HAND_OVER = """([kind, name, type, content]) => {
  const file = new File([Uint8Array.from(atob(content), (one) => one.charCodeAt(0))], name, { type });
  const transfer = new DataTransfer();
  transfer.items.add(file);
  const given = { dataTransfer: transfer, clipboardData: transfer, bubbles: true, cancelable: true };
  const event = kind === "paste" ? new ClipboardEvent(kind, given) : new DragEvent(kind, given);
  document.getElementById("drop").dispatchEvent(event);
  return event.defaultPrevented;
}"""


def hand_over(page, kind: str, name: str, content: bytes, mime: str = "image/png") -> bool:
    """What a browser does when a file is dropped or pasted; whether the page takes it for its own."""
    return page.evaluate(HAND_OVER, [kind, name, mime, base64.b64encode(content).decode()])


@pytest.mark.browser
def test_a_picture_is_dropped_or_pasted(tiny, roomy, visit):
    page = visit(roomy.url)
    settings(page, 40)
    for kind in ("drop", "paste"):
        image = picture(64, 64 if kind == "drop" else 96)
        if kind == "drop":
            assert hand_over(page, "dragover", "mine.png", png(image))  # else the browser would open the file
            assert "over" in page.locator("#drop").get_attribute("class").split()
        assert hand_over(page, kind, f"{kind}.png", png(image))
        page.get_by_alt_text(f"Your picture: {kind}.png").wait_for()
        assert "over" not in page.locator("#drop").get_attribute("class").split()
        ask(page, "What's this?")
        page.locator("article").nth(int(kind == "paste")).wait_for()
        _, result = expected(tiny(), "What's this?", image, max_new_tokens=40, **SETTINGS)
        assert shown(page)[0] == result.texts[0]
    assert hand_over(page, "drop", "notes.txt", b"notes", "text/plain")
    assert page.get_by_role("status").inner_text() == "notes.txt is not a picture."
    assert not hand_over(page, "paste", "notes.txt", b"notes", "text/plain")
    page.get_by_alt_text("Your picture: paste.png").wait_for()


@pytest.mark.browser
def test_an_answer_is_stopped_and_the_next_one_comes_whole(tiny, roomy, visit):
    page = visit(roomy.url)
    make_long(page)
    ask(page, "Hm")
    page.locator(".answer span").nth(3).wait_for(state="attached")
    page.get_by_role("button", name="Stop").click()
    text, figures = shown(page)
    assert text
    assert figures["finish"] == "cancelled"
    assert page.get_by_role("status").inner_text() == "Stopped."
    roomy.until_idle()
    page.unroute("**/v1/stream")
    settings(page, 40)
    ask(page, "What's this?")
    assert shown(page)[0] == expected(tiny(), "What's this?", max_new_tokens=40, **SETTINGS)[1].texts[0]


@pytest.mark.browser
def test_a_lost_connection_is_taken_up_where_it_broke(tiny, roomy, visit):
    _, result = expected(tiny(), "What's this?", max_new_tokens=60, **SETTINGS)
    with proxied(roomy.url) as proxy:
        page = visit(proxy.url)
        settings(page, 60)
        proxy.cuts = [2500, 1, 700, 1500]  # also before anything of an answer has come
        ask(page, "What's this?")
        text, figures = shown(page)
        assert proxy.broken == 4
    assert text == result.texts[0]
    assert (figures["finish"], figures["tokens"]) == (result.finish_reasons[0], str(result.lengths[0]))


@pytest.mark.browser
def test_a_server_that_is_gone_or_refuses_is_said_in_words(roomy, visit):
    with proxied(roomy.url) as proxy:
        page = visit(proxy.url)
        page.get_by_text("Settings").click()
        page.get_by_label("Most").fill("5000")
        ask(page, "Hm")
        assert shown(page)[1]["finish"] == "error"
        assert "max_new_tokens: " in page.get_by_role("status").inner_text()
        page.get_by_label("Most").fill("")
    ask(page, "Hm")
    assert shown(page)[1]["finish"] == "error"
    assert page.get_by_role("status").inner_text() == "The server cannot be reached."


@pytest.mark.browser
def test_where_keys_are_needed_the_browser_asks_for_one(tiny, tiny_directory, env, tmp_path, visit):
    key = "some-key-0123456789"
    (tmp_path / "keys").write_text(key)
    settings_of_it = (*SMALL, f"serve.keys_file={tmp_path / 'keys'}")
    with running(tiny_directory(), env, *settings_of_it) as guarded:
        assert httpx.get(guarded.url).status_code == 401
        page = visit(guarded.url, http_credentials={"username": "", "password": key})
        settings(page, 40)
        ask(page, "What's this?")
        assert shown(page)[0] == expected(tiny(), "What's this?", max_new_tokens=40, **SETTINGS)[1].texts[0]


@pytest.mark.browser
def test_the_keyboard_is_enough(roomy, visit):
    page = visit(roomy.url)
    make_long(page)
    for _ in range(9):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.name") == "coffee_laptop.png":
            break
    page.keyboard.press("Space")
    page.get_by_alt_text("Your picture: coffee_laptop.png").wait_for()
    for _ in range(9):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "question":
            break
    page.keyboard.type(" now")
    page.keyboard.press("Enter")
    page.locator(".answer span").nth(3).wait_for(state="attached")
    page.keyboard.press("Escape")
    assert shown(page)[1]["finish"] == "cancelled"
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.press("Enter")
    page.locator("article").nth(1).wait_for()
    for _ in range(9):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "stop":
            break
    page.keyboard.press("Space")
    assert shown(page)[1]["finish"] == "cancelled"
    outline = page.get_by_label("Question").evaluate("one => getComputedStyle(one).outlineStyle")
    assert outline == "solid"  # the focus, which came back, is seen


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_is_wide_enough(roomy, visit, scheme):
    phone = {"width": 360, "height": 740}
    page = visit(roomy.url, viewport=phone, is_mobile=True, has_touch=True, color_scheme=scheme)
    page.get_by_role("button", name="Example: panda climbing").tap()
    page.get_by_alt_text("Your picture: panda_climbing.png").wait_for()
    page.get_by_text("Settings").tap()
    page.get_by_label("Most").fill("20")
    page.get_by_role("button", name="Ask").tap()
    assert shown(page)[1]["tokens"], page.get_by_role("status").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for button in page.locator("button:visible").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 24, button
    contrast = page.evaluate(
        "[document.body, document.querySelector('.answer')].map(one => getComputedStyle(one).color)"
    )
    assert len(set(contrast)) == 1
