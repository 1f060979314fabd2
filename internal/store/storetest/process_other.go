//go:build !linux

package storetest

import (
	"errors"
	"syscall"
)

func attributes() *syscall.SysProcAttr { return nil }

func childrenOf(int) ([]int, error) {
	return nil, errors.New("on this system it is not known how to find a server's processes")
}
