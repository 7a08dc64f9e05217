// The page in a real Chromium, step by step as tests/page.rs says on standard input: one line in, one
// line out (`ok`, or what was wrong). Screenshots go to the folder given.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import assert from "node:assert/strict";

const [modules, url, shots] = process.argv.slice(2);
const { chromium } = createRequire(`${modules}/`)("playwright-core");
const WAIT = { timeout: 60000 };
const IMAGE = "/lab/page:1";

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-dev-shm-usage"],
});
const requested = [];
const complaints = [];

// A page that notes all it loads and all the browser complains about.
async function opened(options) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.on("request", (request) => requested.push(request.url()));
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.goto(url);
  return page;
}

let page;

const text = (id) => page.locator(`#${id}`).innerText();
const shot = (name, on = page) => on.screenshot({ path: `${shots}/${name}.png`, fullPage: true });

async function fits(on) {
  const wide = await on.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  assert.ok(wide <= 0, `the page is ${wide} pixels too wide`);
}

async function tabTo(selector) {
  for (let n = 0; n < 60; n++) {
    await page.keyboard.press("Tab");
    if (await page.evaluate((wanted) => document.activeElement?.matches(wanted), selector)) return;
  }
  assert.fail(`no tab leads to ${selector}`);
}

// Presses an image's button and says yes.
async function agrees(verb) {
  const button = page.getByRole("button", { name: new RegExp(`^${verb} .*${IMAGE}$`) });
  const image = await button.getAttribute("data-image", WAIT);
  await button.click();
  await page.locator("#ask-title", { hasText: `${verb} ${image}?` }).waitFor(WAIT);
  await page.locator("#ask-yes").click();
  await page.locator("#status", { hasText: `${verb}: done, ${image}` }).waitFor(WAIT);
}

const steps = {
  async open() {
    page = await opened({ colorScheme: "light" });
    await page.locator("#now").waitFor(WAIT);
  },
  // A fill stands still in its middle.
  async fill() {
    await page.locator("#fills li", { hasText: "/v2/lab/img/blobs/sha256:" }).waitFor(WAIT);
    await page.waitForFunction(() => {
      const value = document.querySelector("#fills progress")?.value;
      return value > 20 && value < 80;
    }, undefined, WAIT);
    await shot("fill");
  },
  // It has come to its end, and the numbers have moved without the page being loaded again.
  async moved() {
    await page.locator("#fills", { hasText: "None" }).waitFor(WAIT);
    await page.locator("#now", { hasText: "20.0 MB" }).waitFor(WAIT);
    await page.locator("#misses", { hasText: "first-time" }).waitFor(WAIT);
    const navigations = await page.evaluate(() => performance.getEntriesByType("navigation").length);
    assert.equal(navigations, 1);
  },
  async looks() {
    await page.locator("#errors li").first().waitFor(WAIT);
    await shot("light");
    const dark = await opened({ colorScheme: "dark" });
    await dark.locator("#now").waitFor(WAIT);
    const colour = (on) => on.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.notEqual(await colour(dark), await colour(page));
    await shot("dark", dark);
    await dark.context().close();
    const phone = await opened({ viewport: { width: 360, height: 740 }, deviceScaleFactor: 2 });
    await phone.locator("#images-table tbody tr").waitFor(WAIT);
    await fits(phone);
    await fits(page);
    await shot("phone", phone);
    await phone.context().close();
  },
  async scriptless() {
    const plain = await opened({ javaScriptEnabled: false });
    const told = await plain.locator("body").innerText();
    for (const word of ["Hit rate", "20.0 MB", "first-time", "Purging and", "/lab/page", "1 of 1 images"]) {
      assert.ok(told.includes(word), `${word} is missing in: ${told}`);
    }
    assert.equal(await plain.locator("#images, #purge-all, #pause").filter({ visible: true }).count(), 0);
    await shot("scriptless", plain);
    await plain.context().close();
  },
  // The markup that a path brought is text, and what gets in all the same does not run.
  async hostile() {
    await page.locator("#errors", { hasText: "<img%20src=x/onerror=alert(1)>" }).waitFor(WAIT);
    assert.equal(await page.locator("#figures img, #figures script").count(), 0);
    const before = complaints.length;
    await page.evaluate(() => {
      const script = document.createElement("script");
      script.textContent = "window.ran = true";
      document.body.append(script);
      document.body.insertAdjacentHTML("beforeend", "<button id=evil onclick='window.ran = true'>x</button>");
      document.getElementById("evil").click();
    });
    assert.equal(await page.evaluate(() => window.ran), undefined);
    // Of the script and of the handler; the browser tells of them when it has the time.
    for (let n = 0; n < 600 && complaints.length < before + 2; n++) await page.waitForTimeout(100);
    const said = complaints.splice(before);
    assert.equal(said.length, 2, said.join("\n"));
    assert.ok(said.some((line) => line.includes("Content Security Policy")), said.join("\n"));
    await page.evaluate(() => document.getElementById("evil").remove());
  },
  // By the keyboard alone: refused by Esc, then done.
  async purge() {
    await page.locator("#main").focus();
    await tabTo("#purge-all");
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.equal(outline, "solid");
    await page.keyboard.press("Enter");
    await page.locator("#ask[open]").waitFor(WAIT);
    await shot("dialog");
    assert.equal(await page.evaluate(() => document.activeElement.id), "ask-no");
    await page.keyboard.press("Escape");
    await page.locator("#ask[open]").waitFor({ state: "hidden", ...WAIT });
    assert.equal(await page.evaluate(() => document.activeElement.id), "purge-all");
    assert.ok((await text("disk")).includes("20.0 MB"));
    await page.keyboard.press("Enter");
    await page.locator("#ask[open]").waitFor(WAIT);
    // Asked again before the browser tells that it was closed: the second answer counts.
    await page.evaluate(() => {
      document.getElementById("ask").close("");
      document.getElementById("purge-all").click();
    });
    await page.locator("#ask[open]").waitFor(WAIT);
    await tabTo("#ask-yes");
    await page.keyboard.press("Enter");
    await page.locator("#status", { hasText: "done, everything: 3 entries, 20.0 MB freed" }).waitFor(WAIT);
    await page.locator("#disk", { hasText: "0 B of" }).waitFor(WAIT);
  },
  async pin() {
    page = await opened({});
    await agrees("Pin");
    await page.locator("#images-table .reason", { hasText: "pinned" }).waitFor(WAIT);
    await shot("images");
    await page.locator("#purge-all").click();
    await page.locator("#ask-yes").click();
    await page.locator("#status", { hasText: "0 B freed; 2 pinned entries stay" }).waitFor(WAIT);
  },
  async unpin() {
    await agrees("Unpin");
  },
  async purge_image() {
    await agrees("Purge");
    await page.locator("#disk", { hasText: "0 B of" }).waitFor(WAIT);
  },
  // With `proxy.api_token`: a wrong one, then the right one.
  async token() {
    page = await opened({});
    await page.locator("#token-value").waitFor(WAIT);
    assert.equal(await page.locator("#now").count(), 0);
    for (const token of ["wrong", "s3cret-token"]) {
      await page.locator("#token-value").fill(token);
      await page.keyboard.press("Enter");
      await page.locator(token === "wrong" ? "#token-error:not(:empty)" : "#now").waitFor(WAIT);
    }
    await shot("token");
    assert.ok(requested.every((one) => !one.includes("s3cret")), "the token is in a URL");
    const kept = await page.evaluate(() => [localStorage.length, sessionStorage.length, document.cookie]);
    assert.deepEqual(kept, [0, 1, ""]);
  },
  async end() {
    const foreign = requested.filter((one) => !one.startsWith(url));
    assert.deepEqual(foreign, [], "something is loaded from elsewhere");
    // A browser tells of every answer that is an error, and of those it was meant to get.
    const faults = complaints.filter((line) => !line.startsWith("Failed to load resource"));
    assert.deepEqual(faults, []);
  },
};

for await (const step of createInterface({ input: process.stdin })) {
  try {
    await steps[step]();
    console.log("ok");
  } catch (error) {
    await page?.screenshot({ path: `${shots}/failed-${step}.png` }).catch(() => {});
    console.log(`${step}: ${error.message}`.replaceAll("\n", " | "));
  }
}
await browser.close();
