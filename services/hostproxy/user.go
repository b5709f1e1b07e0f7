package hostproxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// asker returns the user of the TCP socket of this host that has these two addresses, and an error where no process has
// it any more.
type asker func(local, remote netip.AddrPort) (uint32, error)

// askerFor returns the quick asker, or the slow one where the kernel lacks sock_diag: where it does not know the socket
// that listens at this address. A client that is gone is no reason to read the list of all sockets.
func askerFor(listener net.Addr) asker {
	l, ok := listener.(*net.TCPAddr)
	if !ok {
		return readKernel // never called: a Unix socket says itself whose it is
	}
	at := l.AddrPort()
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	all := netip.IPv6Unspecified()
	if at.Addr().Is4() {
		all = netip.IPv4Unspecified()
	}
	if _, err := askKernel(at, netip.AddrPortFrom(all, 0)); err != nil {
		return readKernel
	}
	return askKernel
}

// errClosed means that a socket is there, and its process has closed it. The kernel gives it to user 0.
var errClosed = errors.New("the client has closed its socket")

// userOf returns the user of the process at the other end of a connection of this host, as the agent's user namespace
// numbers them.
func userOf(c net.Conn, ask asker) (uint32, error) {
	if u, ok := c.(*net.UnixConn); ok {
		return peerOf(u)
	}
	// The other end's own address is the remote one of this end.
	its, ours := c.RemoteAddr().(*net.TCPAddr).AddrPort(), c.LocalAddr().(*net.TCPAddr).AddrPort()
	its, ours = netip.AddrPortFrom(its.Addr().Unmap(), its.Port()), netip.AddrPortFrom(ours.Addr().Unmap(), ours.Port())
	return ask(its, ours)
}

func peerOf(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var serr error
	err = raw.Control(func(fd uintptr) { cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, serr); err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// Offsets in struct inet_diag_req_v2 and struct inet_diag_msg (linux/inet_diag.h), after the header of the message.
// Both have struct inet_diag_sockid.
const (
	diagID        = 8 // in the request
	diagDst       = 4 + 16
	diagCookie    = 4 + 16 + 16 + 4
	diagReqSize   = diagID + 48
	diagAnswerID  = 4 // in the answer
	diagUID       = 4 + 48 + 12
	diagInode     = diagUID + 4
	diagByFamily  = 20 // SOCK_DIAG_BY_FAMILY
	answerTimeout = time.Second
)

// askKernel returns the user of the TCP socket with these two addresses (sock_diag(7)).
func askKernel(local, remote netip.AddrPort) (uint32, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	timeout := unix.NsecToTimeval(int64(answerTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return 0, err
	}
	msg := make([]byte, unix.SizeofNlMsghdr+diagReqSize)
	native := binary.NativeEndian
	native.PutUint32(msg, uint32(len(msg)))
	native.PutUint16(msg[4:], diagByFamily)
	native.PutUint16(msg[6:], unix.NLM_F_REQUEST)
	req := msg[unix.SizeofNlMsghdr:]
	req[0], req[1] = unix.AF_INET6, unix.IPPROTO_TCP
	if local.Addr().Is4() {
		req[0] = unix.AF_INET
	}
	native.PutUint32(req[4:], ^uint32(0)) // in every state
	id := req[diagID:]
	binary.BigEndian.PutUint16(id, local.Port())
	binary.BigEndian.PutUint16(id[2:], remote.Port())
	copy(id[4:], local.Addr().AsSlice())
	copy(id[diagDst:], remote.Addr().AsSlice())
	native.PutUint64(id[diagCookie:], ^uint64(0)) // INET_DIAG_NOCOOKIE
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, err
	}
	buf := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, buf, 0)
	if err != nil {
		return 0, err
	}
	if n < unix.SizeofNlMsghdr+4 {
		return 0, errors.New("the kernel's answer is too short")
	}
	body := buf[unix.SizeofNlMsghdr:n]
	switch kind := native.Uint16(buf[4:]); {
	case kind == unix.NLMSG_ERROR:
		return 0, unix.Errno(-int32(native.Uint32(body)))
	case kind != diagByFamily || len(body) < diagInode+4:
		return 0, fmt.Errorf("the kernel's answer is of type %d with %d bytes", kind, len(body))
	case !bytes.Equal(body[diagAnswerID:diagAnswerID+4], id[:4]):
		return 0, errNoSocket // it is about one that listens at the port
	case native.Uint32(body[diagInode:]) == 0:
		return 0, errClosed
	}
	return native.Uint32(body[diagUID:]), nil
}

// readKernel returns the same, and looks at every TCP socket of the host for it.
func readKernel(local, remote netip.AddrPort) (uint32, error) {
	for _, file := range [...]string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(file)
		if err != nil {
			continue
		}
		uid, err := find(bufio.NewScanner(f), local, remote)
		_ = f.Close()
		if err == nil || errors.Is(err, errClosed) {
			return uid, err
		}
	}
	return 0, fmt.Errorf("no socket from %s to %s is known", local, remote)
}

var errNoSocket = errors.New("no such socket")

// find looks for a socket in the lines of /proc/net/tcp (proc(5)).
func find(lines *bufio.Scanner, local, remote netip.AddrPort) (uint32, error) {
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || parseHex(fields[1]) != local || parseHex(fields[2]) != remote {
			continue
		}
		if fields[9] == "0" { // the inode
			return 0, errClosed
		}
		uid, err := strconv.ParseUint(fields[7], 10, 32)
		return uint32(uid), err
	}
	return 0, errNoSocket
}

// parseHex reads "0100007F:1F90": the address as the host's words, the port as a number.
func parseHex(text string) netip.AddrPort {
	addr, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(addr)
	n, perr := strconv.ParseUint(port, 16, 16)
	if err != nil || perr != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	a, ok := netip.AddrFromSlice(raw)
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n))
}
