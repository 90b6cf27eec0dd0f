// OpenAI's client, asked to do one thing: node ask.mjs URL WHAT. Prints what came of it as JSON.

import OpenAI from 'openai'

const MODEL = 'smollm2-135m-instruct'
const messages = [{ role: 'user', content: 'Name three rivers in Europe.' }]
const greedy = { model: MODEL, messages, max_tokens: 12, temperature: 0 }
// the token that would end the answer is never drawn
const endless = { model: MODEL, prompt: '1, 2, 3,', max_tokens: 4000, logit_bias: { 2: -100 } }

const [, , url, what] = process.argv
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'none', maxRetries: 0, timeout: 60_000 })

/** What a call fails with, as the library tells it. */
async function failure(call) {
  try {
    await call()
  } catch (error) {
    const { status, code, param, type } = error
    return { kind: error.constructor.name, status, code, param, type }
  }
  return null
}

const deeds = {
  async models() {
    const listed = []
    for await (const model of client.models.list()) listed.push(model.id)
    return { listed, found: (await client.models.retrieve(MODEL)).id }
  },

  async chat() {
    const answer = await client.chat.completions.create(greedy)
    return { text: answer.choices[0].message.content, usage: answer.usage, kwaai: answer.kwaai }
  },

  async stream() {
    const stream = await client.chat.completions.create({
      ...greedy, stream: true, stream_options: { include_usage: true }
    })
    let text = ''
    let usage = null
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? ''
      usage = chunk.usage ?? usage
    }
    return { text, usage }
  },

  async helper() {
    const stream = client.chat.completions.stream(greedy)
    let text = ''
    stream.on('content', (delta) => { text += delta })
    const answer = await stream.finalChatCompletion()
    return { text, final: answer.choices[0].message.content, finish: answer.choices[0].finish_reason }
  },

  async completion() {
    const answer = await client.completions.create({
      model: MODEL, prompt: ['The capital of France is', 'The capital of Italy is'],
      max_tokens: 4, temperature: 0, logprobs: 2
    })
    return answer.choices.map(({ text, logprobs }) => ({ text, tokens: logprobs.tokens }))
  },

  async embeddings() {
    const input = ['a red house', 'a house that is red', 'seven hungry sharks']
    const answer = await client.embeddings.create({ model: 'all-minilm-l6-v2', input })
    return answer.data.map(({ embedding }) => embedding)
  },

  async responses() {
    const asked = {
      model: MODEL, input: messages[0].content, max_output_tokens: 12, temperature: 0
    }
    const whole = await client.responses.create(asked)
    let text = ''
    for await (const event of await client.responses.create({ ...asked, stream: true })) {
      if (event.type === 'response.output_text.delta') text += event.delta
    }
    return { whole: whole.output_text, text }
  },

  async abort() {
    const stream = await client.completions.create({ ...endless, stream: true })
    for await (const chunk of stream) {
      if (chunk.choices[0].text) break // which aborts the request
    }
    const controller = new AbortController()
    setTimeout(() => controller.abort(), 500)
    return failure(() => client.completions.create(endless, { signal: controller.signal }))
  },

  async errors() {
    return {
      model: await failure(() => client.chat.completions.create({ ...greedy, model: 'nothing' })),
      name: await failure(() => client.chat.completions.create({ ...greedy, beams: 4 })),
      range: await failure(() => client.chat.completions.create({ ...greedy, temperature: 3 })),
      path: await failure(() => client.images.generate({ prompt: 'a river' })),
      context: await failure(() =>
        client.completions.create({ model: MODEL, prompt: 'word '.repeat(20_000) })),
      time: await failure(() => client.completions.create(endless, { timeout: 500 })),
    }
  },
}

console.log(JSON.stringify(await deeds[what]()))
