// Package packet knows the bytes of a packet: it parses and rewrites superframes in place, computes checksums, and
// segments and coalesces them. It is a leaf: it imports nothing else of Tapestry, and everyone may import it.
//
// # Theory of operation
//
// A Packet is a view: Parse fills it from borrowed bytes, and whatever changes the packet afterwards changes the bytes
// and the view together. It is reused for the next packet, holds no copy of any payload, and nothing in this package
// allocates, locks or logs per packet.
//
// ParseFrame trusts nothing. A pod writes the whole superframe, virtio-net header included, and the kernel of another
// pod will act on that header; so it must say exactly what our own parse of the packet says, or the frame is
// BadOffload. What passes is one of three forms, and all other code knows only these:
//
//	VNet zero            the L4 checksum is full, or is none (UDP over IPv4), or is wrong
//	NeedsCsum, no GSO    the L4 checksum field holds the folded sum of the pseudo header
//	NeedsCsum and GSO    the same, for a superframe of more than one segment
//
// Full checksums are never computed anew on the way, only updated by what was changed (RFC 1624): damage that happened
// elsewhere stays visible to the receiver. A partial checksum has nothing to protect yet, so completing it (Segmenter,
// CompleteChecksum, quotes in ICMP errors) starts from the packet and not from what its sender left in the field.
//
// Between two Tapestry nodes a partial checksum stays partial: with Segmenter.Partial the field of each segment holds
// the folded sum of that very segment's pseudo header, and Coalescer.Partial takes what has that for what it is, before
// anything is translated. The payload is summed up on neither node; the tunnel authenticates it. No mark is needed
// beside the field: detectPartial says why a full checksum that is the same by chance does no harm, putPartial why
// UDP's 0 for "no checksum" is never one. Other packets are never partial on a wire: fragments, ICMP and SCTP, what is
// quoted in ICMP errors, what goes to stock WireGuard.
//
// Segmenter and Coalescer are inverse: what one cuts, the other joins to the same bytes. From that follow the rules of
// Coalescer: it joins only what segmentation would repeat (addresses, class, TTL, acknowledgement, window, options) or
// derive (sequence number, identification, PSH and FIN in the last segment), and only where both checksums were
// partial, or both full and right, since joining replaces them by a partial one. A Tail keeps the joined payloads where
// they are; writev puts them together.
//
// Tuples of later fragments have no ports, those of ICMP errors neither: who translates them finds the flow by FragID
// and addresses, and by the tuple of the Embedded packet.
package packet
