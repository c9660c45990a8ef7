/** An attachment's key, as CNI has it: one interface of one container in one network. */
export interface AttachmentKey {
  readonly network: string;
  readonly containerId: string;
  readonly ifname: string;
}

export function keyParams(key: AttachmentKey): [string, string, string] {
  return [key.network, key.containerId, key.ifname];
}
