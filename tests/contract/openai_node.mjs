// Plays a user of the official OpenAI package for Node; prints what it saw as one line of JSON.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [packages, baseURL, apiKey] = process.argv.slice(2);
const resolved = createRequire(pathToFileURL(`${packages}/package.json`)).resolve("openai");
const { default: OpenAI } = await import(pathToFileURL(resolved));
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 30_000 });
const create = (fields) => client.embeddings.create({ model: "tiny", input: "a", ...fields });
const texts = Array.from({ length: 300 }, (_, i) => `text ${i}`);

async function failure(call) {
  try {
    await call;
  } catch (error) {
    const { status, code, param, type, requestID } = error;
    return { name: error.constructor.name, status, code, param, type, requestID };
  }
  return null;
}

async function ids(pages) {
  const found = [];
  for await (const item of pages) found.push(item.id);
  return found;
}

const raw = await create({}).withResponse();
const seen = {
  single: (await create({ input: "hello" })).data.map((item) => Array.from(item.embedding)),
  usage: (await create({ input: "hello" })).usage,
  list: (await create({ input: texts, model: "short" })).data.map((item) => Array.from(item.embedding)),
  indexes: (await create({ input: texts })).data.map((item) => item.index),
  float: (await create({ input: ["a", "b"], encoding_format: "float" })).data.map((item) => item.embedding),
  base64: (await create({ input: ["a", "b"], encoding_format: "base64" })).data.map((item) => item.embedding),
  narrow: (await create({ input: ["a"], dimensions: 4 })).data.map((item) => Array.from(item.embedding)),
  tokens: (await create({ input: [[1, 2, 3], [4]] })).data.map((item) => Array.from(item.embedding)),
  requestId: [raw.request_id, raw.response.headers.get("x-request-id")],
  models: await ids(client.models.list()),
  model: (await client.models.retrieve("tiny")).id,
  badRequest: await failure(create({ input: ["a", ""] })),
  dimensions: await failure(create({ dimensions: 99 })),
  unknownModel: await failure(create({ model: "nope" })),
  badKey: await failure(client.withOptions({ apiKey: "em_wrong" }).embeddings.create({ model: "tiny", input: "a" })),
  upstream: await failure(create({ input: "broken" })),
};
console.log(JSON.stringify(seen));
