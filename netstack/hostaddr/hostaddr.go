// Package hostaddr lists the addresses of the host's interfaces and reports when they change. It needs no capability,
// because the kernel lets everybody subscribe to address changes (rtnetlink(7), RTMGRP_IPV4_IFADDR and
// RTMGRP_IPV6_IFADDR).
package hostaddr

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// List returns the addresses of all interfaces in the network namespace in which this process started. They are sorted,
// each occurs once, and none has an IPv6 zone.
func List() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the addresses of the host: %w", err)
	}
	list := make([]netip.Addr, 0, len(all))
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				list = append(list, ip.Unmap())
			}
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list), nil
}

// Watch calls changed with the addresses at once, and again whenever they have changed, until ctx ends. Then it returns
// the error of ctx.
func Watch(ctx context.Context, changed func([]netip.Addr)) error {
	socket, err := subscribe() // before the first list, so that no change is missed
	if err != nil {
		return fmt.Errorf("watch the addresses of the host: %w", err)
	}
	defer socket.Close()
	stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
	defer stop()
	var known []netip.Addr
	for first := true; ; first = false {
		list, err := List()
		if err != nil {
			return err
		}
		if first || !slices.Equal(list, known) {
			known = list
			changed(slices.Clone(list))
		}
		if err := wait(socket); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("watch the addresses of the host: %w", err)
		}
	}
}

// subscribe opens a socket for the kernel's messages about addresses.
func subscribe() (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	return os.NewFile(uintptr(fd), "rtnetlink"), nil
}

// wait returns when the addresses may have changed. The contents of the messages, and lost messages, do not matter,
// because all addresses are listed anew.
func wait(socket *os.File) error {
	conn, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	heard := false
	var failed error
	err = conn.Read(func(fd uintptr) (done bool) {
		for {
			_, err := unix.Read(int(fd), buf)
			switch {
			case err == nil, errors.Is(err, unix.ENOBUFS):
				heard = true
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				return heard
			default:
				failed = err
				return true
			}
		}
	})
	return errors.Join(err, failed)
}
