// The main job through a TypeScript SDK, over stdio: generate, edit, compose, describe, history, replay.
// node conversation.cjs CLIENT_MODULE STDIO_MODULE PLAN COMMAND ARGUMENTS...
// Prints what each call answered as one JSON object. PLAN is JSON: the arguments that make the calls small.

const [clientModule, stdioModule, plan, command, ...args] = process.argv.slice(2);
const { Client } = require(clientModule);
const { StdioClientTransport } = require(stdioModule);
const small = JSON.parse(plan);
const first = clientModule.includes("/sdk/"); // version 1 of the SDK takes a result schema before the options

async function main() {
  const client = new Client({ name: "conversation", version: "1" });
  await client.connect(new StdioClientTransport({ command, args, env: process.env, stderr: "inherit" }));
  const progress = [];
  const ask = (name, given) => {
    const options = { onprogress: (event) => progress.push(event) };
    return client.callTool({ name, arguments: given }, ...(first ? [undefined, options] : [options]));
  };
  const call = async (name, given) => {
    const result = await ask(name, given);
    if (result.isError) throw new Error(`${name}: ${JSON.stringify(result.content)}`);
    return result;
  };
  const id = (result) => result.structuredContent.images[0].id;

  const tools = (await client.listTools()).tools.map((tool) => tool.name);
  const generated = await call("generate_image", { prompt: "a red circle", ...small });
  const edited = await call("edit_image", { image: id(generated), instruction: "make it blue", ...small });
  const composed = await call("compose_from_references", {
    images: [id(generated), id(edited)],
    instruction: "both side by side",
    ...small,
  });
  const described = await call("describe_image", {
    images: [id(composed)],
    question: "What is in it?",
    max_tokens: 4,
  });
  const history = await call("image_history", { image: id(composed) });
  const replayed = await call("generate_image", { prompt: "a red circle", ...small });
  const picture = await client.readResource({ uri: generated.content.at(-1).uri });
  const refused = await ask("generate_image", { prompt: "a red circle", steps: 0 });
  await client.close();
  return { tools, generated, edited, composed, described, history, replayed, picture, progress, refused };
}

main().then(
  (answers) => console.log(JSON.stringify(answers)),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
