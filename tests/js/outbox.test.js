import assert from "node:assert/strict";
import { beforeEach, mock, test } from "node:test";

import { after, dispatch, FakeServer, freshBrowser, kept, question, settled } from "./fakes.js";
import { names } from "../../src/rarebox/web/static/local.js";
import { Outbox } from "../../src/rarebox/web/static/outbox.js";

const OBJECT = { query: 1, verdict: "object", boxes: [[0, 0, 9, 9]], labels: [0], milliseconds: 5, after: null };
const REJECTED = { ...OBJECT, verdict: "not_an_object", boxes: [], labels: [] };
const WITHDRAWN = { ...REJECTED, query: undefined, verdict: "withdrawn" };
const about = (query, more = {}) => ({ image: 1, base: `q${query}`, what: "fish", ...more });

/** @type {FakeServer} */
let server;

beforeEach(() => {
  freshBrowser();
  server = new FakeServer(question(1), question(2));
});

/** A tab of the browser, and what its outbox reported. */
function tab(client = "tab") {
  const reported = { queries: [], results: [], statuses: [], problems: [] };
  const outbox = new Outbox("p", client, {
    state: () => {},
    queries: (queries) => reported.queries.push(queries.map((one) => one.id)),
    results: (pairs) => reported.results.push(...pairs),
    status: (status) => reported.statuses.push(status),
    problem: (sentence) => reported.problems.push(sentence),
  });
  return { outbox, reported };
}

test("an opened outbox asks for questions", async () => {
  const { outbox, reported } = tab();
  outbox.open();
  await settled();
  assert.deepEqual(reported.queries, [[1, 2]]);
  assert.equal(reported.statuses.at(-1), "saved");
});

test("an answer is in the browser before it is sent and leaves it once it is saved", async () => {
  const { outbox, reported } = tab();
  outbox.send(OBJECT, about(1));
  assert.equal(kept(), 1);
  await settled();
  assert.equal(kept(), 0);
  assert.equal(server.standing(1).verdict, "object");
  assert.equal(reported.results[0].result.status, "saved");
});

test("answers given offline are kept and sent when the server is back", async () => {
  const { outbox, reported } = tab();
  server.up = false;
  outbox.send(OBJECT, about(1));
  outbox.send({ ...REJECTED, query: 2 }, about(2));
  await settled();
  assert.equal(reported.statuses.at(-1), "offline");
  assert.equal(kept(), 2);
  server.up = true;
  await after(20_000);
  assert.deepEqual(server.verdicts, ["object", "not_an_object"]);
  assert.equal(kept(), 0);
  assert.equal(reported.statuses.at(-1), "saved");
});

test("an outbox that the browser brings online sends at once", async () => {
  const { outbox } = tab();
  server.up = false;
  outbox.send(OBJECT, about(1));
  await settled();
  server.up = true;
  dispatch("online");
  await settled();
  assert.equal(server.saved.length, 1);
});

test("pauses between tries grow up to fifteen seconds", async () => {
  const { outbox } = tab();
  server.up = false;
  outbox.send(OBJECT, about(1));
  await settled();
  for (const pause of [500, 1000, 2000, 4000, 8000, 15_000, 15_000]) {
    const before = server.requests.length;
    await after(pause - 1);
    assert.equal(server.requests.length, before, `too early: ${pause}`);
    await after(1);
    assert.equal(server.requests.length, before + 1, `too late: ${pause}`);
  }
});

test("an answer whose reply was lost is sent again with the same key and saved once", async () => {
  const { outbox } = tab();
  server.losesReply = true;
  const key = outbox.send(OBJECT, about(1));
  await settled();
  assert.equal(kept(), 1);
  await after(1000);
  assert.equal(kept(), 0);
  assert.deepEqual(
    server.requests.flatMap((one) => one.answers.map((item) => item.key)),
    [key, key],
  );
  assert.equal(server.saved.length, 1);
  assert.deepEqual(outbox.saved(key), { query: 1, answer: 1 });
});

for (const [name, reply] of Object.entries({
  "a page": () => new Response("<html>Please sign in</html>"),
  "another program": () => new Response("{}"),
  "another project": (answers) =>
    Response.json({
      results: answers.map(({ key }) => ({ key, status: "saved", query: 1, answer: 1 })),
      ...{ queries: [], state: { id: "another" } },
    }),
  "silence on these answers": () => new Response('{"results": [], "queries": [], "state": {"id": "p"}}'),
  "a proxy's 404": () => new Response("<html>", { status: 404 }),
  "a refusal of another key": () => new Response('{"error": "wrong", "keys": ["x"]}', { status: 422 }),
  "a sign-in page of the server": () => new Response('{"error": "sign in"}', { status: 401 }),
})) {
  test(`${name} settles no answer`, async () => {
    const { outbox, reported } = tab();
    server.instead = reply;
    outbox.send(OBJECT, about(1));
    await settled();
    assert.equal(kept(), 1);
    assert.deepEqual(reported.results, []);
    assert.ok(["offline", "signed-out"].includes(reported.statuses.at(-1)));
    server.instead = null;
    await after(20_000);
    assert.equal(kept(), 0);
    assert.equal(server.saved.length, 1);
  });
}

test("the correction of an unsent answer waits for its number", async () => {
  const { outbox } = tab();
  server.up = false;
  const key = outbox.send(OBJECT, about(1));
  outbox.send(WITHDRAWN, about(1, { parent: key }));
  await settled();
  server.up = true;
  await after(20_000);
  assert.deepEqual(server.verdicts, ["object", "withdrawn"]);
  assert.equal(server.saved[1].query, 1);
  assert.equal(server.saved[1].after, 1);
});

test("the correction of an unsent answer waits even under another name", async () => {
  const { outbox } = tab();
  server.up = false;
  const key = outbox.send(OBJECT, about(1));
  outbox.send(WITHDRAWN, { ...about(1, { parent: key }), base: "q99" });
  await settled();
  Object.assign(server, { up: true, requests: [] });
  await after(1000);
  assert.deepEqual(
    server.requests.map((one) => one.answers.length),
    [1, 1],
  );
  assert.equal(server.standing(1), null);
});

test("a reopened question is answered again without naming the withdrawn answer", async () => {
  const { outbox } = tab();
  const first = outbox.send(OBJECT, about(1));
  const second = outbox.send(WITHDRAWN, about(1, { parent: first }));
  outbox.send({ ...REJECTED, query: undefined }, about(1, { parent: second, fresh: true }));
  await settled();
  assert.deepEqual(server.verdicts, ["object", "withdrawn", "not_an_object"]);
  assert.equal(server.saved[2].after, null);
  assert.equal(server.saved[2].query, 1);
});

test("a refused answer leaves, takes its corrections with it and nothing else", async () => {
  const { outbox, reported } = tab();
  server.up = false;
  const wrong = outbox.send(OBJECT, about(1));
  outbox.send(WITHDRAWN, about(1, { parent: wrong }));
  outbox.send({ ...REJECTED, query: 2 }, about(2));
  await settled();
  server.refused.add(wrong);
  server.up = true;
  await after(20_000);
  assert.deepEqual(server.verdicts, ["not_an_object"]);
  assert.equal(kept(), 0);
  const refused = reported.results.filter(({ result }) => result.status === "refused");
  assert.equal(refused.length, 2);
  assert.equal(refused[0].result.reason, "wrong box");
  assert.equal(outbox.saved(wrong), null);
});

test("a conflict reports the current answer", async () => {
  const { outbox, reported } = tab();
  outbox.send(OBJECT, about(1));
  await settled();
  outbox.send(REJECTED, about(1));
  await settled();
  assert.equal(reported.results[1].result.status, "conflict");
  assert.equal(reported.results[1].result.current.verdict, "object");
  assert.equal(kept(), 0);
});

test("requests that a proxy finds too large are halved until they pass", async () => {
  const { outbox } = tab();
  server.up = false;
  server.questions = Array.from({ length: 20 }, (_, i) => question(i + 1));
  for (const { id } of server.questions) outbox.send({ ...OBJECT, query: id }, about(id));
  await settled();
  Object.assign(server, { up: true, most: 3, requests: [] });
  for (let i = 0; i < 20; i++) await after(15_000);
  const sizes = server.requests.map((one) => one.answers.length);
  assert.deepEqual(sizes.slice(0, 4), [20, 10, 5, 2]);
  assert.equal(server.saved.length, 20);
  assert.equal(kept(), 0);
});

test("an answer that does not pass alone lets the others go first", async () => {
  const { outbox } = tab();
  server.up = false;
  const stuck = outbox.send(OBJECT, about(1));
  outbox.send({ ...REJECTED, query: 2 }, about(2));
  await settled();
  server.up = true;
  const honest = globalThis.fetch;
  globalThis.fetch = (path, init) =>
    init.body.includes(stuck) ? Promise.resolve(new Response("<html>", { status: 413 })) : honest(path, init);
  for (let i = 0; i < 5; i++) await after(15_000);
  assert.deepEqual(server.verdicts, ["not_an_object"]);
  assert.equal(kept(), 1);
});

test("a tab sends what it left behind itself at once", async () => {
  server.up = false;
  tab("tab").outbox.send(OBJECT, about(1));
  await settled();
  freshPage();
  server.up = true;
  tab("tab").outbox.open();
  await settled();
  assert.equal(server.saved.length, 1);
  assert.equal(kept(), 0);
});

test("a tab adopts the answers of a closed tab after a while, in that tab's name", async () => {
  server.up = false;
  tab("closed").outbox.send(OBJECT, about(1));
  await settled();
  freshPage();
  Object.assign(server, { up: true, requests: [] });
  tab("open").outbox.open();
  await settled();
  assert.equal(server.saved.length, 0);
  await after(16_000);
  assert.equal(server.saved.length, 1);
  assert.equal(kept(), 0);
  const [request] = server.requests.filter((one) => one.answers.length);
  assert.equal(request.client, "closed");
  assert.equal(request.want, 0); // its questions are not for this tab
});

test("the answer of a closed tab is sent although its clock was a day ahead", async () => {
  server.up = false;
  await after(864e5);
  tab("closed").outbox.send(OBJECT, about(1));
  await settled();
  mock.timers.setTime(1_000_000);
  freshPage();
  server.up = true;
  tab("open").outbox.open();
  await after(16_000);
  assert.equal(server.saved.length, 1);
  assert.equal(kept(), 0);
});

test("the correction of another tab's saved answer is sent by the tab that adopts it", async () => {
  const { outbox } = tab("closed");
  const key = outbox.send(OBJECT, about(1));
  await settled();
  server.up = false;
  outbox.send(WITHDRAWN, about(1, { parent: key }));
  await settled();
  freshPage();
  server.up = true;
  tab("open").outbox.open();
  await after(16_000);
  assert.deepEqual(server.verdicts, ["object", "withdrawn"]);
});

test("damaged entries in the browser's storage stop nothing", async () => {
  for (const text of ["{}", "null", "{", '{"item": 1, "client": "x", "at": 1}', '"x"'])
    localStorage.setItem(`rarebox/p/out/${text}`, text);
  localStorage.setItem("rarebox/p/saved", "null");
  const { outbox, reported } = tab();
  outbox.open();
  outbox.send(OBJECT, about(1));
  await after(16_000);
  assert.equal(server.saved.length, 1);
  assert.equal(reported.statuses.at(-1), "saved");
});

test("an answer that the browser cannot keep is reported once, sent all the same, and guards the page", async () => {
  const { outbox, reported } = tab();
  server.up = false;
  localStorage.room = 0;
  outbox.send(OBJECT, about(1));
  outbox.send({ ...OBJECT, query: 2 }, about(2));
  await settled();
  assert.equal(reported.problems.length, 1);
  let warned = false;
  dispatch("beforeunload", { preventDefault: () => (warned = true) });
  assert.ok(warned);
  server.up = true;
  await after(1000);
  assert.equal(server.saved.length, 2);
  warned = false;
  dispatch("beforeunload", { preventDefault: () => (warned = true) });
  assert.ok(!warned);
});

/** The old page is gone: its timers and listeners with it, what the browser keeps stays. */
function freshPage() {
  const texts = Array.from({ length: localStorage.length }, (_, i) => localStorage.key(i));
  const entries = texts.map((name) => [name, localStorage.getItem(name)]);
  freshBrowser();
  for (const [name, text] of entries) localStorage.setItem(name, text);
}

test("a request names the session in which the tab saw its numbers, also after a restart and a reload", async () => {
  const { outbox } = tab();
  outbox.open();
  await settled();
  server.sessions.push("s2");
  outbox.send(OBJECT, about(1));
  await settled();
  outbox.send({ ...REJECTED, query: 2 }, about(2));
  await settled();
  const { outbox: reloaded } = tab();
  reloaded.open();
  await settled();
  assert.deepEqual(
    server.requests.map((one) => one.session),
    [null, "s1", "s2", "s2"],
  );
  assert.deepEqual(
    server.requests.flatMap((one) => one.answers.map((answer) => answer.session)),
    ["s1", "s2"],
  );
});

test("a tab whose session is gone asks for a reload and forgets all numbers", async () => {
  const { outbox, reported } = tab();
  outbox.open();
  await settled();
  const key = outbox.send(OBJECT, about(1));
  await settled();
  assert.ok(outbox.saved(key));
  server.sessions = ["s0"];
  outbox.ask();
  await settled();
  assert.match(reported.problems.at(-1), /Reload/);
  assert.equal(outbox.saved(key), null);
  outbox.send({ ...REJECTED, query: 2 }, about(2));
  await settled();
  assert.equal(server.requests.at(-1).answers[0].session, "s1"); // which the server refuses
  const requests = server.requests.length;
  const { outbox: reloaded, reported: later } = tab();
  reloaded.open();
  await settled();
  assert.equal(server.requests[requests].session, null);
  assert.deepEqual(later.problems, []);
});

test("a new tab forgets the drafts of a session that is gone, and asks again", async () => {
  const { outbox } = tab();
  outbox.open();
  await settled();
  localStorage.setItem("rarebox/p/draft/1", "{}");
  sessionStorage.clear();
  server.sessions = ["s0"];
  const { outbox: fresh, reported } = tab("new");
  fresh.open();
  await settled();
  assert.equal(localStorage.getItem("rarebox/p/draft/1"), null);
  assert.deepEqual(reported.queries.at(-1), [1, 2]);
  assert.deepEqual(reported.problems, []);
});

test("answers that an older store refuses are kept until the newer one is back", async () => {
  const { outbox, reported } = tab();
  outbox.open();
  await settled();
  [server.up, server.name, server.sessions] = [false, "server 2", ["s0"]];
  const key = outbox.send(OBJECT, about(1));
  outbox.send({ ...REJECTED, after: 1 }, about(1, { parent: key }));
  await settled();
  server.up = true;
  await after(20_000);
  assert.deepEqual([kept(), server.saved.length], [0, 0]);
  assert.deepEqual(
    reported.results.map(({ result }) => result.status),
    ["rolled_back", "rolled_back"],
  );
  const { outbox: reloaded, reported: later } = tab();
  reloaded.open(); // tries once more
  await settled();
  assert.ok(later.results.every(({ record, result }) => record.aside && result.status === "rolled_back"));
  assert.deepEqual([kept(), server.saved.length], [0, 0]);
  [server.name, server.sessions] = ["server 3", ["s0", "s1"]];
  reloaded.ask();
  await settled();
  assert.deepEqual(server.verdicts, ["object", "not_an_object"]);
  assert.deepEqual([kept(), names("p/aside/").length], [0, 0]);
});

test("numbers that a tab hears of between exchanges carry their session", async () => {
  const { outbox } = tab();
  outbox.open();
  await settled();
  server.sessions.push("s2");
  outbox.hear(server.state); // such as after a class was added
  outbox.send(OBJECT, about(1));
  await settled();
  assert.equal(server.requests.at(-1).answers[0].session, "s2");
});

test("a tab that hears of a restarted server keeps its session until an exchange", async () => {
  const { outbox, reported } = tab();
  outbox.open();
  await settled();
  server.name = "server 2";
  server.sessions = ["s0"];
  server.up = false;
  outbox.hear(server.state);
  outbox.send(OBJECT, about(1));
  await settled();
  server.up = true;
  await after(20_000);
  assert.equal(server.requests.at(-1).answers[0]?.session ?? "s1", "s1");
  assert.match(reported.problems.at(-1), /Reload/);
  const requests = server.requests.length;
  outbox.hear(server.state);
  await settled();
  assert.equal(server.requests.length, requests); // it does not ask again and again
});

test("without a server there is no grid, and what could not be given back is kept", async () => {
  const { outbox, reported } = tab();
  outbox.open();
  await settled();
  assert.deepEqual(
    (await outbox.grid()).queries.map((one) => one.id),
    [1, 2],
  );
  await outbox.release([2]);
  await settled();
  assert.deepEqual(server.requests.find((one) => one.path === "/api/release")?.queries, [2]);
  server.up = false;
  const { queries, problem } = await outbox.grid();
  assert.deepEqual(queries, []);
  assert.match(problem, /server/);
  await outbox.release([2]);
  await settled();
  server.up = true;
  await after(20_000);
  assert.deepEqual(reported.queries.at(-1), [1, 2]);
});
