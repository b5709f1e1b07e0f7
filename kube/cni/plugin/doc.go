// Package plugin is the CNI executable tapestry-cni. A container runtime starts it for each operation on a pod (ADD,
// DEL, CHECK) and on the network (STATUS, GC, VERSION), as in CNI specification 1.1.0.
//
// # Theory of operation
//
// The executable has the rights, the agent has the knowledge. ADD asks the agent for the properties of the interface
// (cni.Client.Prepare: addresses, Ethernet address, MTU), makes the TAP in the pod's network namespace, and hands its
// descriptor to the agent (cni.Client.Add). The agent gives a duplicate to the keeper before it answers. Then the
// executable exits, which closes its own descriptor.
//
// SIGKILL of the executable, of the agent, or of both may end ADD after any step, and every step may be repeated:
//   - Prepare returns the same for the same attachment. DEL and GC release what it returned, and so does the agent when
//     nothing follows.
//   - Once the executable has exited, nothing holds a TAP that no agent has. The TAP is gone with it. When the
//     executable died before it had configured the TAP, the next ADD deletes the TAP and makes it anew.
//   - Add of a pod that is attached already attaches the new descriptor in place of the old one.
//   - A second ADD of an attached pod whose interface is intact changes nothing and answers the same.
//
// ADD waits for an agent that is away for a moment, as during a restart. When the agent stays away, ADD fails with
// code 11 (try again later). DEL never fails because the agent is away: it deletes the TAP itself, from which the
// next agent learns that the pod is gone.
//
// # Capabilities
//
// Of the capability bandwidth, the plugin limits what the pod sends (egressRate), with the kernel's token bucket on
// the pod's interface. It passes the limit on what the pod receives (ingressRate), and portMappings, to the agent.
package plugin
