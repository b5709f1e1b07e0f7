// Package packet reads and writes the bytes of packets: it parses and rewrites superframes in place, computes
// checksums, and segments and coalesces them. It is a leaf: it imports nothing else of Tapestry, and every package may
// import it.
//
// The package is larger than others because parsing, rewriting, checksums and segmentation all rely on the unexported
// fields and rules of Packet.
//
// # Theory of operation
//
// A Packet is a view: ParseFrame and ParseIP fill it from borrowed bytes, and every later change of the packet changes
// the bytes and the view together. A Packet is reused for the next packet and holds no copy of a payload. Nothing in
// this package allocates, locks or logs per packet.
//
// ParseFrame trusts nothing. A pod writes the whole superframe, the virtio-net header included, and the kernel of
// another pod will act on that header. So the header must say exactly what ParseFrame finds in the packet; otherwise
// the frame is BadOffload. A frame that passes has one of three forms, and all other code knows only these:
//
//	VNet zero            the L4 checksum is full, or is none (UDP over IPv4), or is wrong
//	NeedsCsum, no GSO    the L4 checksum field holds the folded sum of the pseudo header
//	NeedsCsum and GSO    the same, for a superframe of more than one segment
//
// Full checksums are never computed anew on the way. They are only updated by what was changed (RFC 1624), so that the
// receiver still sees damage that happened elsewhere. A partial checksum has nothing to protect yet. Whoever completes
// it (Segmenter, CompleteChecksum, quotes in ICMP errors) therefore computes it from the packet, and ignores what its
// sender left in the field.
//
// Between two Tapestry nodes a partial checksum stays partial. With Segmenter.Partial the field of each segment holds
// the folded sum of that segment's own pseudo header. Coalescer.Partial recognises such a field before anything is
// translated. Neither node sums up the payload; the tunnel authenticates it. No mark is needed beside the field: the
// comment of detectPartial says why a full checksum that has the same value by chance does no harm, that of putPartial
// why the field is never UDP's 0 for "no checksum". Other packets are never partial on a wire: fragments, ICMP and
// SCTP, packets quoted in ICMP errors, and packets for stock WireGuard.
//
// Segmenter and Coalescer are inverse: what one cuts, the other joins to the same bytes. The rules of Coalescer follow
// from that. It joins only packets whose differences segmentation would reproduce: fields that are equal in all
// segments (addresses, class, TTL, acknowledgement, window, options), and fields that segmentation derives (sequence
// number, identification, PSH and FIN in the last segment). It joins two packets only where both checksums are partial,
// or both are full and right, since the superframe gets a partial one. The payloads of joined packets stay where they
// are, in Packet.Tail; writev puts them together.
//
// Tuples of later fragments and of ICMP errors have no ports. Whoever translates a later fragment finds its flow by
// FragID and addresses; for an ICMP error, by the tuple of the Embedded packet.
package packet
