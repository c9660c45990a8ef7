// Preloaded by every Node in the machine. V8 patches WebAssembly code that runs while another thread compiles better
// code for it; qemu's translation of such code goes wrong about once in twelve starts of the agent (SIGSEGV, or "Check
// failed" under Runtime_WasmTriggerTierUp), never on a real processor. Node strips types with WebAssembly.
const { setFlagsFromString } = require("node:v8");
for (const flag of ["--no-wasm-tier-up", "--no-wasm-dynamic-tiering"]) setFlagsFromString(flag);
