// A js-libp2p node that does what its standard input says, one JSON object a line, and answers in
// kind. It serves an echo, and says at the start who it is and where.

import { createInterface } from 'node:readline'

// Node 20 has no Promise.withResolvers, which the library needs.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((yes, no) => { resolve = yes; reject = no })
  return { promise, resolve, reject }
}

const { noise } = await import('@chainsafe/libp2p-noise')
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { identify } = await import('@libp2p/identify')
const { ping } = await import('@libp2p/ping')
const { tcp } = await import('@libp2p/tcp')
const { multiaddr } = await import('@multiformats/multiaddr')
const { createLibp2p } = await import('libp2p')

const ECHO = '/kwaai/echo/1'

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), ping: ping() }
})

let served = 0
await node.handle(ECHO, async (stream) => {
  for await (const data of stream) {
    served += data.byteLength
    if (!stream.send(data)) await stream.onDrain()
  }
  await stream.close()
})

// Frames: four bytes of length, then the bytes.
async function echo (peer, size) {
  const stream = await node.dialProtocol(peer, ECHO)
  const frame = new Uint8Array(4 + size)
  new DataView(frame.buffer).setUint32(0, size)
  for (let at = 0; at < size; at++) frame[4 + at] = at % 251
  const began = performance.now()
  if (!stream.send(frame)) await stream.onDrain()
  let at = 0
  for await (const data of stream) {
    for (const byte of data.subarray()) if (byte !== frame[at++]) throw new Error('not what was said')
    if (at >= frame.length) break
  }
  const ms = performance.now() - began
  stream.abort(new Error('done'))
  return { echoed: at - 4, ms }
}

const commands = {
  dial: async ({ address }) => {
    const connection = await node.dial(multiaddr(address))
    return { peer: connection.remotePeer.toString() }
  },
  ping: async ({ address }) => ({ ms: await node.services.ping.ping(multiaddr(address)) }),
  identify: async ({ address }) => {
    const said = await node.services.identify.identify(await node.dial(multiaddr(address)))
    return { agent: said.agentVersion, protocols: said.protocols, peer: said.peerId.toString() }
  },
  echo: async ({ address, size }) => await echo(multiaddr(address), size),
  peers: async () => ({ peers: node.getPeers().map(String), served })
}

const say = (value) => process.stdout.write(JSON.stringify(value) + '\n')
say({ peer: node.peerId.toString(), addresses: node.getMultiaddrs().map(String) })
for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  try {
    say(await commands[command.do](command))
  } catch (error) {
    say({ error: String(error) })
  }
}
await node.stop()
