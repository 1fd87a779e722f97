// The main flows of a user of the official OpenAI package for Node; prints what it saw as one line of JSON.
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";

const [packages, baseURL, apiKey] = process.argv.slice(2);
const resolved = createRequire(pathToFileURL(`${packages}/package.json`)).resolve("openai");
const { default: OpenAI, toFile } = await import(pathToFileURL(resolved));
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 30_000 });
const END_MS = 40_000;

const line = (custom_id, input, fields = {}) =>
  JSON.stringify({ custom_id, method: "POST", url: "/v1/embeddings", body: { model: "tiny", input, ...fields } });
const jsonl = (lines) => Buffer.from(lines.map((each) => `${each}\n`).join(""));

async function until(what, look) {
  const givesUpAt = Date.now() + END_MS;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > givesUpAt) throw new Error(`waited too long for ${what}`);
    await sleep(100);
  }
}

async function ids(pages) {
  const found = [];
  for await (const item of pages) found.push(item.id);
  return found;
}

async function failure(call) {
  try {
    await call;
  } catch (error) {
    const { status, code, param, type } = error;
    return { name: error.constructor.name, status, code, param, type };
  }
  return null;
}

const ended = (id) =>
  until(`the end of ${id}`, async () => {
    const batch = await client.batches.retrieve(id);
    return ["completed", "failed", "expired", "cancelled"].includes(batch.status) && batch;
  });
const linesOf = async (id) =>
  (await (await client.files.content(id)).text()).trimEnd().split("\n").map((each) => JSON.parse(each));

const deliveries = [];
const receiver = createServer(async (request, response) => {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  deliveries.push({ headers: request.headers, body: Buffer.concat(pieces).toString() });
  response.writeHead(204).end();
});
await new Promise((resolve) => receiver.listen(0, "127.0.0.1", resolve));
const endpoint = await client.webhooks.create({
  name: "node",
  url: `http://127.0.0.1:${receiver.address().port}/hooks`,
  event_types: ["batch.completed"],
});

const seen = {};
const embed = (fields) => client.embeddings.create({ model: "tiny", input: ["a", "b"], ...fields });
seen.float = (await embed({ encoding_format: "float" })).data.map((item) => item.embedding);
seen.base64 = (await embed({})).data.map((item) => Array.from(item.embedding));
seen.onlyFloats = (await embed({ model: "only-floats" })).data.map((item) => Array.from(item.embedding));
seen.onlyFloatsPlain = (await embed({ model: "only-floats", encoding_format: "float" })).data.map((i) => i.embedding);

const content = jsonl([line("a", "hello"), line("b", ["x", "y"]), line("c", "poison")]);
const file = await client.files.create({ file: await toFile(content, "requests.jsonl"), purpose: "batch" });
seen.file = file;
seen.sameFile = await client.files.retrieve(file.id);
seen.sameContent = Buffer.from(await (await client.files.content(file.id)).arrayBuffer()).equals(content);
seen.processed = (await client.files.waitForProcessing(file.id, { pollInterval: 10 })).status;
const nameless = await client.files.create({ file: await toFile(content), purpose: "batch" });
seen.nameless = nameless.filename;
seen.deleted = await client.files.delete(nameless.id);
seen.gone = await failure(client.files.retrieve(nameless.id));

seen.made = [];
for (let i = 0; i < 5; i += 1)
  seen.made.push((await client.files.create({ file: await toFile(Buffer.from("x"), `${i}.txt`), purpose: "evals" })).id);
seen.listed = await ids(client.files.list({ purpose: "evals", limit: 2 }));
for (const id of seen.made) await client.files.delete(id);

const upload = await client.uploads.create({
  bytes: content.length,
  filename: "parts.jsonl",
  mime_type: "application/jsonl",
  purpose: "batch",
});
const cuts = [content.subarray(100), content.subarray(0, 100)];
const parts = await Promise.all(
  cuts.map(async (cut) => client.uploads.parts.create(upload.id, { data: await toFile(cut, "part") })),
);
const completed = await client.uploads.complete(upload.id, { part_ids: [parts[1].id, parts[0].id] });
seen.upload = [upload.status, completed.status];
seen.uploadedContent = await (await client.files.content(completed.file.id)).text();
seen.expectedContent = content.toString();

const create = (input_file_id) =>
  client.batches.create({ input_file_id, endpoint: "/v1/embeddings", completion_window: "24h", metadata: { by: "node" } });
const created = await create(completed.file.id);
seen.created = created;
seen.batch = await ended(created.id);
seen.output = await linesOf(seen.batch.output_file_id);
seen.errors = await linesOf(seen.batch.error_file_id);
seen.tooLate = await failure(client.batches.cancel(created.id));
const more = [];
for (let i = 0; i < 4; i += 1) more.push((await create(file.id)).id);
seen.newest = more.reverse();
seen.batches = await ids(client.batches.list({ limit: 2 }));
seen.failed = await ended((await create("file-doesnotexist")).id);

const delivery = await until("the webhook", () => deliveries.find((each) => each.body.includes(created.id)));
seen.event = await client.webhooks.unwrap(delivery.body, delivery.headers, endpoint.signing_secret);
seen.wrongSecret = await failure(client.webhooks.unwrap(delivery.body, delivery.headers, "whsec_bm90IHRoZSBzZWNyZXQ="));
seen.endpoints = await ids(client.webhooks.list());
seen.endpoint = endpoint.id;
seen.endpointDeleted = await client.webhooks.delete(endpoint.id);
receiver.close();
console.log(JSON.stringify(seen));
