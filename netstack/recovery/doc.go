// Package recovery decides how much a TCP sender may have on its way over a network that loses, and what it sends
// again.
//
// The package sends nothing, keeps no bytes and reads no clock. Its three parts are told what happened, and answer:
// RTT how long an acknowledgement may take (RFC 6298), Window how many bytes may be on their way (RFC 5681 with the
// growth of CUBIC, RFC 9438), and Board which of the bytes that were sent are missing (RFC 2018, RFC 6675). Times are
// counted from any origin that stays the same, windows and lengths in bytes of payload. None of the parts is safe for
// concurrent use, and none allocates.
package recovery
