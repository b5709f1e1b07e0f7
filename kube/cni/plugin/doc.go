// Package plugin is the CNI executable tapestry-cni, which a container runtime starts once for each thing that happens
// to a pod: ADD, DEL, CHECK, and for the network as a whole STATUS, GC and VERSION (CNI specification 1.1.0).
//
// # Theory of operation
//
// The executable has the rights, the agent has the knowledge. ADD asks the agent what the interface shall be like
// (cni.Client.Prepare: addresses, Ethernet address, MTU), makes the TAP inside of the pod's network namespace, and
// hands its descriptor to the agent (cni.Client.Add), which gives a duplicate to the keeper before it answers. Then the
// executable ends, and its own descriptor with it.
//
// Each step may be the last one, by SIGKILL of the executable, of the agent, or of both, and each may be done again:
//   - what Prepare gave is given again to the same attachment, and given up by DEL, by GC, or by the agent when nothing follows;
//   - a TAP that no agent has holds no descriptor once the executable has ended, and is gone or, if that happened before it was
//     configured, deleted and made anew by the next ADD;
//   - Add of what is attached already attaches the new descriptor in place of the old one;
//   - a second ADD of a pod that is attached, and whose interface is as it should be, changes nothing and answers the same.
//
// An agent that is away for a moment, to be restarted, is waited for; one that stays away makes ADD fail with code 11
// (try again later). DEL never fails for want of the agent: it deletes the TAP itself, by which the next agent finds
// out that the pod is gone.
//
// # Capabilities
//
// Of bandwidth, what the pod sends (egressRate) is limited here, by the kernel's token bucket on the pod's interface.
// What it receives (ingressRate) and portMappings are told to the agent, which sees to them.
package plugin
