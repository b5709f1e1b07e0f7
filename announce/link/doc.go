// Package link announces addresses by ARP (RFC 826) and NDP (RFC 4861): it says at which Ethernet address they are, and
// answers whoever asks. The host has none of the addresses; its kernel routes what arrives for them.
//
// # One address on one interface
//
// An address that becomes this node's is first asked for (ARP probe, RFC 5227; a solicitation as for duplicates, RFC
// 4862), for as long as the node that had it may need to notice. When that node has died there is no such wait. Then it
// is announced: a request and a reply that nobody asked for, since some hosts heed only the one or the other, or an
// unsolicited advertisement with Override. Both are sent a few times more, because they may be lost.
//
// # Conflicts
//
// What the announcers of other nodes say carries a mark: in the bytes with which an ARP frame is filled up to the least
// length of Ethernet, or in an NDP option for experiments (RFC 4727), which receivers have to skip. Who says an address
// is his without that mark is somebody else. He is told, and left alone: as long as he is heard the address is neither
// announced nor answered for, and he is asked again now and then. Who forges the mark wins nothing but not to be told:
// whoever is on the link can take any address.
//
// # Questions
//
// A machine is answered a few times a second for each address, and no more often (askers). So one that floods questions
// takes no more than the reading of them, and the others' questions are read in time. A machine that forges Ethernet
// addresses, too, is the switch's to stop.
//
// # Goroutines
//
// One asks the agent and steps; one for each open socket reads, and answers by itself. The Speaker's lock is held over
// no I/O but the sending of single frames.
package link
